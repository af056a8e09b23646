"""Build records, which say what a build produced, and the references of runs to them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, FailFast, Field

from ...errors import IntegrityError, UnreachableError, UserError
from ...storage import AnyPath, list_matching, path_exists
from ...storage.atomic import check_new_size, create_file, make_folder, read_file
from ...storage.json_record import InvalidRecordError, entries, parse_model
from ..shards.marker import Keys
from ..spec import fingerprint_of
from .datasets import DATASET

BUILD_DIGITS = 16
_MAX_RECORD = 2**26
"""That of a build with more than a million shards."""
_FEWER_SHARDS = (
    "Merge small shards with: distil-cache cache compact. Or build with a larger --shard-size, or in several datasets."
)
_MAX_REF = 2**20
_MAX_RECIPE = 2**16
"""tomllib takes the square of the length for a name with many dots."""
_LONGEST_NAME = 4096
_BUILD = re.compile(r"[0-9a-f]{16}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RECORD_NAME = re.compile(rf"{_BUILD.pattern}\.json")
RECIPE_NAME = re.compile(rf"{_BUILD.pattern}\.toml")
REF_NAME = re.compile(rf"{_RUN.pattern}\.json")
_FEATURE = re.compile(r"[a-z0-9_]+")
_Model = TypeVar("_Model", bound=BaseModel)
DatasetName = Annotated[str, Field(pattern=rf"\A{DATASET.pattern}\z")]
BuildId = Annotated[str, Field(pattern=rf"\A{_BUILD.pattern}\z")]


class BuiltFeature(BaseModel):
    """One feature of a build.

    Attributes
    ----------
    fingerprint
        Of its spec, 64 hex digits.
    folder
        Name of the feature's folder.
    shards
        Ids of its shards, in the order of the plan.
    splits
        The splits of the dataset for which it was built.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    folder: Annotated[str, Field(pattern=r"\A[a-z0-9_]+-[0-9a-f]{16}\z")]
    shards: Keys
    splits: Annotated[tuple[str, ...], FailFast()]


class Derived(BaseModel):
    """The origin of a perturbed dataset.

    Attributes
    ----------
    dataset, revision
        The dataset whose cached images were perturbed, and its revision.
    perturbation
        Such as ``jpeg:90``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: DatasetName
    revision: Annotated[str, Field(pattern=r"\A[0-9a-f]{16}\z")]
    perturbation: Annotated[str, Field(pattern=r"\A[a-z]+:[0-9.]+\z")]


class BuildRecord(BaseModel):
    """A dataset's revision and the features built for it.

    ``id`` is the hash of dataset, revision and features, so the same build run again has the same record. The
    perturbation is part of the features' fingerprints, so datasets that share rows still have different records.

    Attributes
    ----------
    id
        16 hex digits.
    dataset, revision
        The dataset and its revision.
    features
        The features by name.
    created
        When the build ended.
    versions
        Library to version.
    origin
        Of a perturbed dataset, else None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: BuildId
    dataset: DatasetName
    revision: Annotated[str, Field(pattern=r"\A[0-9a-f]{16}\z")]
    features: Annotated[dict[str, BuiltFeature], entries(_FEATURE.fullmatch, (dict, BuiltFeature))]
    created: AwareDatetime
    versions: Annotated[dict[str, str], entries(bool, str)]
    origin: Derived | None = None

    @classmethod
    def new(
        cls,
        dataset: str,
        revision: str,
        features: Mapping[str, BuiltFeature],
        versions: Mapping[str, str],
        origin: Derived | None = None,
    ) -> Self:
        """Return the record of a build that ends now."""
        return cls(
            id=_id_of(dataset, revision, features),
            dataset=dataset,
            revision=revision,
            features=dict(features),
            created=datetime.now(UTC).replace(microsecond=0),
            versions=dict(versions),
            origin=origin,
        )


class Ref(BaseModel):
    """A run that uses a build record.

    Attributes
    ----------
    run
        The run's id.
    build
        Id of the build record.
    path
        The run's folder when the reference was written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[str, Field(pattern=rf"\A{_RUN.pattern}\z")]
    build: BuildId
    path: str


class BuildStore:
    """The folders ``builds`` and ``refs`` of a cache.

    Parameters
    ----------
    root
        The cache.
    """

    def __init__(self, root: AnyPath) -> None:
        self._root = root
        self.folder = root / "builds"
        self.refs_folder = root / "refs"

    def write(self, record: BuildRecord) -> None:
        """Store a record; an existing one is kept. Raises UserError if it names more shards than a record can."""
        absent_fields = {"origin"} if record.origin is None else set()
        text = record.model_dump_json(indent=2, exclude=absent_fields).encode() + b"\n"
        path = self.folder / f"{record.id}.json"
        check_new_size(path, len(text), _MAX_RECORD, _FEWER_SHARDS)
        make_folder(self.folder)
        create_file(path, text)

    def write_recipe(self, build_id: str, recipe: bytes) -> None:
        """Store the recipe of a build beside its record; that of an earlier build with the same record is kept."""
        create_file(self.folder / f"{build_id}.toml", recipe)

    def adm_name(self, build_id: str) -> str | None:
        """Return the file or name of the ADM that the recipe of a build gives; None without a recipe that does."""
        path = self.folder / f"{build_id}.toml"
        try:
            named = tomllib.loads(read_file(path, _MAX_RECIPE).decode()).get("adm")
        except (
            ValueError,
            RecursionError,
            IntegrityError,
            UnreachableError,
        ):  # it is a convenience: the record has the digest
            return None
        return named if isinstance(named, str) and len(named) <= _LONGEST_NAME else None

    def read(self, build_id: str) -> BuildRecord:
        """Return a record; UserError if it does not exist, IntegrityError if it is damaged."""
        path = self.folder / f"{build_id}.json"
        if not _BUILD.fullmatch(build_id) or not path_exists(path):
            hint = f"List them with: distil-cache cache ls {self._root}"
            raise UserError(f"{self._root}: has no build {build_id}. {hint}")
        record = read_build(path)
        if record.id != build_id or record.id != _id_of(record.dataset, record.revision, record.features):
            raise IntegrityError(f"{path}: the content does not belong to this build's id, so the file is damaged.")
        return record

    def ids(self) -> list[str]:
        """Return the ids of all builds, sorted."""
        return [path.stem for path in list_matching(self.folder, RECORD_NAME)]

    def all(self) -> list[BuildRecord]:
        """Return all records, oldest first."""
        return sorted((self.read(build) for build in self.ids()), key=lambda record: (record.created, record.id))

    def find(self, dataset: str) -> list[BuildRecord]:
        """Return the records of one dataset, oldest first."""
        return [record for record in self.all() if record.dataset == dataset]

    def add_ref(self, run_id: str, build_id: str, path: AnyPath | str) -> None:
        """Record that a run uses a build.

        Parameters
        ----------
        run_id
            The run's id.
        build_id
            The build that it uses.
        path
            The run's folder.

        Raises
        ------
        UserError
            If the id is not allowed, the build does not exist, or the run already refers to another build.
        """
        if not _RUN.fullmatch(run_id):
            raise UserError(f"{run_id!r}: is not a valid run name. Use letters, digits, dots, dashes and underscores.")
        make_folder(self.refs_folder)
        target = self.refs_folder / f"{run_id}.json"
        ref = Ref(run=run_id, build=self.read(build_id).id, path=str(path))
        if not create_file(target, ref.model_dump_json(indent=2).encode() + b"\n"):
            existing = read_ref(target)
            if existing.build != ref.build:
                raise UserError(f"{target}: run {run_id} already uses build {existing.build}. Give the run a new name.")

    def refs(self) -> list[Ref]:
        """Return all references, sorted by run."""
        return [read_ref(path) for path in list_matching(self.refs_folder, REF_NAME)]


def read_ref(path: AnyPath) -> Ref:
    """Read one reference; IntegrityError if the file is damaged, or is that of another run."""
    ref = _read(path, Ref, _MAX_REF)
    if path.name != f"{ref.run}.json":
        raise IntegrityError(f"{path}: is the reference of another run, {ref.run}, so the file is damaged.")
    return ref


def read_build(path: AnyPath) -> BuildRecord:
    """Read one build record, wherever it lies; IntegrityError if the file is absent or damaged."""
    return _read(path, BuildRecord, _MAX_RECORD)


def _id_of(dataset: str, revision: str, features: Mapping[str, BuiltFeature]) -> str:
    plain = {name: feature.model_dump(mode="json") for name, feature in features.items()}
    return fingerprint_of({"dataset": dataset, "revision": revision, "features": plain})[:BUILD_DIGITS]


def _read(path: AnyPath, model: type[_Model], most_bytes: int) -> _Model:
    try:
        return parse_model(model, read_file(path, most_bytes))
    except InvalidRecordError as error:
        raise IntegrityError(f"{path}: is not a valid record ({error}).") from error
