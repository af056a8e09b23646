"""The keyword arguments of ``build`` and ``train`` that are passed on to their configurations, with their types.

A test compares the names with the fields of ``pipeline.config.BuildConfig`` and ``train.config.TrainConfig``, whose
docstrings describe them. A setting that is left out takes its default, or that of the profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Literal, TypedDict

from ..choices import (
    Amp,
    CodecChoice,
    FloatStorage,
    ImagePreset,
    InitialWeights,
    NoiseReduction,
    PassCalls,
    Precision,
    Preset,
    Reader,
    ScheduleName,
    ShardForm,
    Split,
    ValSource,
)

StrPath = str | PathLike[str]


def several(values: StrPath | Iterable[StrPath]) -> tuple[StrPath, ...]:
    """Return values that are given one or many at a time as a tuple."""
    return (values,) if isinstance(values, str) or not isinstance(values, Iterable) else tuple(values)


class BuildSettings(TypedDict, total=False):
    """Settings of :func:`distil_cache.build`, as the options of ``distil-cache build``."""

    adm: str
    adm_config: StrPath | None
    class_label: str | None
    sha256: Sequence[str]
    preset: Preset
    image_preset: ImagePreset
    harmonize: str | None
    image_size: int | None
    steps: str
    real_step: int
    calls: PassCalls
    clip: bool
    noise: NoiseReduction
    teacher: str
    teacher_weights: StrPath | None
    train_size: int | None
    embedding: str
    embedding_weights: StrPath | None
    autoencoder: str | None
    lpips: str | None
    precision: Precision
    real: Sequence[StrPath]
    fake: Sequence[str]
    split: Split | None
    split_by: str | None
    split_seed: int
    layout: str | None
    labels: str | None
    columns: str | None
    path_prefix: Sequence[str]
    features: Sequence[str]
    set: Sequence[str]
    min_side: int
    max_pixels: int
    rehash: bool
    one_class: bool
    batch_size: Literal["auto"] | int
    compile: bool
    shard_size: int
    format: ShardForm
    codec: CodecChoice
    storage: FloatStorage
    memory: str | None
    decode_threads: int


class TrainSettings(TypedDict, total=False):
    """Settings of :func:`distil_cache.train`, as the options of ``distil-cache train``."""

    select: str | None
    build: str | Sequence[str]
    method: str
    preset: Preset
    aug_prob: float | None
    kd_weight: float
    pos_weight: float | Literal["balanced"]
    teacher_online: bool
    teacher: str | None
    teacher_weights: StrPath | None
    backbone: str
    initial_weights: InitialWeights | None
    init_from: StrPath | None
    epochs: int
    batch_size: int
    accumulate: int
    lr: float
    beta1: float
    weight_decay: float
    clip_grad: float | None
    schedule: ScheduleName
    warmup_steps: int
    patience: int | None
    lr_factor: float | None
    min_lr: float | None
    drop_every: int | None
    stop_after: int | None
    amp: Amp
    seed: int
    train_size: int | None
    val_from: ValSource
    val_fraction: float
    reader: Reader
    export: StrPath | None
