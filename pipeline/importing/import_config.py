"""The configuration of an import, validated before any work starts, and the specs that follow from it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...cache.spec import Spec
from ...choices import SHARD_SIZE, CodecChoice, FloatStorage, ImportKind, Precision, Preset, ShardForm
from ...errors import UsageError
from ...features.imported import (
    ImportedDireSpec,
    ImportedEpsSpec,
    ImportedFiles,
    ImportedImageSpec,
    ImportedReconSpec,
    ImportOrigin,
)
from ...features.registry import make_specs
from ...images.spec import ImageSize
from ...storage.pydantic_field import PathField
from ..config import DATASET_NAME, ShardSize, check_codec, default_threads, wrong_option
from .loose_files import PARTS, RESIZED_BY


class ImportConfig(BaseModel):
    """The arguments of an import. The first group is part of the specs, or decides which values are accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ImportKind
    origin: ImportOrigin = "not told"
    resize: bool = False
    lossy: bool = False
    storage: FloatStorage = "float16"
    teacher: str | None = None
    teacher_weights: str | Path | None = None
    preset: Preset = "paper"
    train_size: ImageSize | None = None
    precision: Precision = "fp32"

    sources: tuple[Path, ...] = Field(min_length=1)
    cache: PathField
    dataset: str = Field(pattern=DATASET_NAME)
    layout: str | None = None
    features: tuple[str, ...] = ()
    device: str = "auto"
    batch_size: int = Field(default=8, ge=1)
    shard_size: ShardSize = SHARD_SIZE
    format: ShardForm = "zarr"
    codec: CodecChoice = "auto"
    decode_threads: int = Field(default_factory=default_threads, ge=1)

    @classmethod
    def checked(cls, **values: object) -> ImportConfig:
        """Validate the fields. Raises UsageError for the first option that is invalid or contradicts the others."""
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise wrong_option(error, "import") from None
        unknown = sorted(set(config.features) - set(PARTS[config.kind]))
        if unknown:
            known = ", ".join(PARTS[config.kind])
            raise UsageError(
                f"--features {unknown[0]}: the kind {config.kind} has {known}; images are always imported."
            )
        check_codec(config.format, config.codec)
        if config.kind != "dire" and config.layout is not None:
            raise UsageError("--layout: applies to the kind dire only. The folders of the kind distildire are fixed.")
        return config


def import_specs(
    config: ImportConfig, size: int, features: Collection[str], teacher_digest: str | None
) -> dict[str, Spec]:
    """Return feature -> spec for the imported features.

    Parameters
    ----------
    config
        Configuration of the import.
    size
        Side of the images in pixels.
    features
        Wanted features.
    teacher_digest
        Digest of the teacher's weights, if it is wanted.
    """
    imported = ImportedFiles(kind=config.kind, origin=config.origin)
    resize = RESIZED_BY[config.kind] if config.resize else "none"
    specs: dict[str, Spec] = {
        "image": ImportedImageSpec.model_validate({"imported": imported, "size": size, "resize": resize}),
        "eps": ImportedEpsSpec(imported=imported, size=size, storage=config.storage),
        "recon": ImportedReconSpec(imported=imported, size=size, lossy=config.lossy),
        "dire": ImportedDireSpec(imported=imported, size=size, lossy=config.lossy),
    }
    settings = {
        "backbone": config.teacher,
        "weights": teacher_digest,
        "preset": config.preset,
        "train_size": config.train_size,
        "precision": config.precision,
    }
    return make_specs(features, settings, specs)
