"""The configuration of a build, validated before any work starts, and the builds that one command requests."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..choices import (
    ADM,
    BACKBONE,
    MAX_PIXELS,
    MIN_SIDE,
    SHARD_SIZE,
    STEPS,
    CodecChoice,
    FloatStorage,
    ImagePreset,
    NoiseReduction,
    PassCalls,
    Precision,
    Preset,
    ShardForm,
    Split,
)
from ..errors import UsageError
from ..images.file import Limits
from ..images.spec import ImageSize, parse_harmonization, parse_perturbation
from ..models.addresses import check_sha256, is_address
from ..models.class_label import ClassLabel
from ..storage import AnyPath, to_path
from ..storage.pydantic_field import PathField
from .sources.discover import check_layout
from .sources.file import UNASSIGNED, ReadingOptions, is_storable, printable
from .sources.reading import parse_reading
from .split_by import SplitShares, parse_shares

ShardSize = Annotated[int, Field(ge=1, le=65536)]
"""Images in a new shard."""
DATASET_NAME = r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\z"
DERIVED_NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}"
FORMS = {
    "dataset": (
        "cannot name a dataset. Use up to 100 letters (a-z), digits, dots, dashes and underscores, beginning with a "
        "letter or a digit."
    ),
    "origin": "is not plain text on one line. Use letters (a-z), digits, spaces and punctuation.",
}
"""What a field of a certain form takes, in words."""
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SOURCE_OPTIONS = (
    "real",
    "fake",
    "split",
    "split_by",
    "split_seed",
    "layout",
    "labels",
    "columns",
    "path_prefix",
    "one_class",
    "rehash",
    "min_side",
    "max_pixels",
)
"""Settings for reading sources: with ``--from-cache`` only their defaults are accepted."""


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(processes: int) -> int:
    """Return how many threads each of several processes may compute with."""
    return max(1, cores() // processes)


def default_threads() -> int:
    """Return the default number of threads that read and decode images."""
    return min(8, cores())


def check_codec(form: ShardForm, codec: CodecChoice) -> None:
    """Raise UsageError if a codec is asked for in a format that does not compress."""
    if form == "webdataset" and codec not in {"auto", "none"}:
        raise UsageError(f"--codec {codec}: the tars of --format webdataset are not compressed. Leave one of them out.")


def parse_size(option: str, text: str) -> int:
    """Return the bytes of a size such as ``8GiB``, ``1.5 GB`` or ``900MiB``. Raises UsageError for anything else."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([MGT]i?B)", text, re.ASCII)
    size = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if size < 1:
        raise UsageError(
            f"{option} {printable(text)}: is not a size. Write a number and a unit, such as 8GiB or 900MiB."
        )
    return size


class BuildConfig(BaseModel):
    """The arguments of a build.

    The first group determines values and is part of the specs. The second group determines input, output and speed.

    Attributes
    ----------
    real
        Folders of real images.
    fake
        ``NAME=DIR`` each: folders of images of the generator NAME.
    split
        Split of the images for which the sources name none.
    split_by, split_seed
        Shares of train, val and test, such as ``80/10/10``, by which those images are divided; see :mod:`.split_by`.
    one_class
        Accept sources with only real or only generated images.
    harmonize
        ``jpeg:QUALITY``, see :func:`..images.spec.parse_harmonization`.
    perturb
        Perturbation such as ``jpeg:75``, see :func:`..images.spec.parse_perturbation`.
    origin
        Dataset whose cached images are used in place of ``sources``, see :mod:`.planning.from_cache`.
    splits
        Splits of ``origin`` to use; empty for the default.
    set
        ``FEATURE.FIELD=VALUE`` each: fields of the specs of single features, see :mod:`.planning.own_settings`.
    memory
        Most memory of each process of a build on a CPU, such as ``8GiB``; see :mod:`.execution.host_memory`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    adm: str = ADM
    adm_config: Path | None = None
    class_label: str | None = None
    sha256: tuple[str, ...] = ()
    preset: Preset = "paper"
    image_preset: ImagePreset = "distildire"
    harmonize: str | None = None
    perturb: str | None = None
    image_size: ImageSize | None = None
    steps: str = STEPS
    real_step: int = Field(default=0, ge=0)
    calls: PassCalls = "all"
    clip: bool = True
    noise: NoiseReduction = "mean"
    teacher: str = BACKBONE
    teacher_weights: str | Path | None = None
    train_size: ImageSize | None = None
    embedding: str = BACKBONE
    embedding_weights: str | Path | None = None
    autoencoder: str | None = None
    lpips: str | None = None
    precision: Precision = "fp32"
    storage: FloatStorage = "float16"
    set: tuple[str, ...] = ()

    sources: tuple[PathField, ...] = ()
    real: tuple[PathField, ...] = ()
    fake: tuple[str, ...] = ()
    split: Split | None = None
    split_by: str | None = None
    split_seed: int = 0
    origin: str | None = None
    splits: tuple[str, ...] = ()
    cache: PathField
    dataset: str = Field(pattern=rf"\A{DERIVED_NAME}\z")
    layout: str | None = None
    labels: str | None = None
    columns: str | None = None
    path_prefix: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    min_side: int = Field(default=MIN_SIDE, ge=1)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MAX_PIXELS)
    rehash: bool = False
    one_class: bool = False
    device: str = "auto"
    batch_size: Literal["auto"] | int = "auto"
    memory: str | None = None
    compile: bool = False
    shard_size: ShardSize = SHARD_SIZE
    format: ShardForm = "zarr"
    codec: CodecChoice = "auto"
    decode_threads: int = Field(default_factory=default_threads, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Raise UsageError for settings that contradict each other."""
        parse_harmonization(self.harmonize)
        if self.class_label is not None:
            ClassLabel.parse(self.class_label)
        others = (self.teacher_weights, self.embedding_weights, self.autoencoder, self.lpips)
        if check_sha256(self.sha256) and Path(self.adm).exists() and not any(is_address(str(name)) for name in others):
            raise UsageError("--sha256: applies to weights that are downloaded, and these are local files.")
        parse_reading(self.labels, self.columns, self.path_prefix)
        check_layout(self.layout)
        if self.perturb is not None:
            parse_perturbation(self.perturb)
        _ = self.generators
        if self.split is not None and self.split_by is not None:
            raise UsageError("--split and --split-by: give one of them.")
        _ = self.shares
        check_codec(self.format, self.codec)
        _ = self.memory_bytes
        if bool(self.sources or self.real or self.fake) == (self.origin is not None):
            raise UsageError(
                "build: images come either from a SOURCE or, with --from-cache, from a dataset. Give one of them."
            )
        if self.perturb is not None and self.origin is None:
            raise UsageError(f"--perturb {self.perturb}: needs --from-cache.")
        if "@" in self.dataset and self.perturb is None:
            raise UsageError(
                f"--dataset {self.dataset}: names with an @ are reserved for derived datasets. "
                "Build it with --from-cache --dataset NAME --perturb KIND:STRENGTH."
            )
        return self

    @property
    def reading(self) -> ReadingOptions:
        """How to read the sources."""
        reading = parse_reading(self.labels, self.columns, self.path_prefix)
        return replace(reading, split=UNASSIGNED if self.split_by is not None else self.split)

    @property
    def generators(self) -> list[tuple[str, AnyPath]]:
        """Name and folder of the generators that are declared."""
        found = []
        for text in self.fake:
            name, equals, folder = text.partition("=")
            if not equals or not name.strip() or not folder or not is_storable(name):
                raise UsageError(
                    f"--fake {printable(text)}: write NAME=DIR, the generator's name and the folder of its images."
                )
            found.append((name.strip(), to_path(folder)))
        return found

    @property
    def shares(self) -> SplitShares | None:
        """Shares by which to divide images without a split, if they are to be divided."""
        return None if self.split_by is None else parse_shares(self.split_by, self.split_seed)

    @property
    def memory_bytes(self) -> int | None:
        """The bound of ``memory`` in bytes; None without one."""
        return None if self.memory is None else parse_size("--memory", self.memory)

    @property
    def limits(self) -> Limits:
        """Size limits for images."""
        return Limits(max_pixels=self.max_pixels, min_side=self.min_side)

    @classmethod
    def checked(cls, **values: object) -> BuildConfig:
        """Validate the fields. Raises UsageError for the first option with an invalid value."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise wrong_option(error, "build") from None


def build_requests(
    *,
    from_cache: bool = False,
    perturb: Sequence[str] = (),
    splits: str | None = None,
    name: str | None = None,
    **settings: Any,
) -> list[BuildConfig]:
    """Return the builds that a command requests, in the order in which to run them.

    Parameters
    ----------
    from_cache
        Use the cached images of the dataset instead of sources.
    perturb
        Perturbations such as ``jpeg:75``. Each gives a derived dataset.
    splits
        Splits of the derived datasets, separated by commas.
    name
        Name of the derived dataset, in place of ``D@KIND-STRENGTH``.
    **settings
        The other fields of :class:`BuildConfig`.

    Raises
    ------
    UsageError
        For arguments that contradict each other.
    """
    if not from_cache:
        for option, value in (("--perturb", perturb), ("--splits", splits), ("--as", name)):
            if value:
                raise UsageError(f"{option}: needs --from-cache: derived datasets are computed from cached images.")
        if not any(settings.get(field) for field in ("sources", "real", "fake")):
            raise UsageError(
                "build: name a SOURCE, declare folders with --real and --fake, or give --from-cache to start from the "
                "cached images of --dataset."
            )
        return [BuildConfig.checked(**settings)]
    if settings["sources"]:
        raise UsageError(f"--from-cache: reads no source. Leave out {settings['sources'][0]}, or leave out the option.")
    for field in SOURCE_OPTIONS:
        default = BuildConfig.model_fields[field].default
        if settings.get(field, default) != default:
            raise UsageError(f"--{field.replace('_', '-')}: applies to sources, and --from-cache reads none.")
    origin = {**settings, "origin": settings["dataset"]}
    if not perturb:
        for option, value in (("--splits", splits), ("--as", name)):
            if value:
                raise UsageError(
                    f"{option}: needs --perturb. To add features to some splits, write --features SPLIT:LIST."
                )
        return [BuildConfig.checked(**origin)]
    return _derived(origin, [str(parse_perturbation(text)) for text in perturb], _listed(splits), name)


def derived_name(dataset: str, perturbation: str) -> str:
    """Return the default name of a derived dataset, such as ``cifake@jpeg-75``."""
    return f"{dataset}@{perturbation.replace(':', '-')}"


def _derived(
    origin: dict[str, Any], perturbations: Sequence[str], splits: tuple[str, ...], name: str | None
) -> list[BuildConfig]:
    repeated = next((text for index, text in enumerate(perturbations) if text in perturbations[:index]), None)
    if repeated is not None:
        raise UsageError(f"--perturb {repeated}: is given twice.")
    if name is not None and len(perturbations) > 1:
        raise UsageError(f"--as {name}: names one dataset, and --perturb is given {len(perturbations)} times.")
    if name == origin["dataset"]:
        raise UsageError(f"--as {name}: is the dataset to perturb. Choose another name.")
    configs = []
    for perturbation in perturbations:
        dataset = name or derived_name(origin["dataset"], perturbation)
        if not re.fullmatch(DERIVED_NAME, dataset):
            raise UsageError(
                f"--as {dataset}: cannot name a dataset. Use up to 100 letters, digits, dots, dashes, underscores and @."
            )
        configs.append(BuildConfig.checked(**{**origin, "dataset": dataset, "perturb": perturbation, "splits": splits}))
    return configs


def _listed(splits: str | None) -> tuple[str, ...]:
    if splits is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in splits.split(",") if name.strip()))
    if not names:
        raise UsageError(f"--splits {splits}: name at least one split, such as test or val,test.")
    return names


def wrong_option(error: ValidationError, command: str) -> UsageError:
    """Return the error for the first invalid option of a command."""
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else command
    rule = FORMS.get(field) if first["type"] == "string_pattern_mismatch" else None
    message = rule or f"{first['msg'][:1].lower()}{first['msg'][1:]}."
    return UsageError(f"--{field.replace('_', '-')} {first['input']!s}: {message}")
