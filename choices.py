"""Choices and defaults that the options of the commands share with the configurations, written once.

This module imports nothing but ``typing``: ``--help`` needs its names and must answer at once.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

Preset = Literal["paper", "official-code"]
"""Follow the paper's text, or the code that was published with it."""
Profile = Literal["small", "paper"]
"""Defaults for a laptop without a network, or those of the paper."""
ImagePreset = Literal["distildire", "dire", "dnf", "dire-v1"]
"""Whose preprocessing makes the square image that the ADM sees. ``dire-v1`` is what ``dire`` was at first."""
StoredPreset = Literal["distildire", "dire", "dnf", "dire-center-crop"]
"""What the spec of an image holds for it. ``dire`` stands for ``dire-v1`` there, so old fingerprints stay valid."""
STORED_PRESETS: dict[ImagePreset, StoredPreset] = {
    "distildire": "distildire",
    "dire": "dire-center-crop",
    "dnf": "dnf",
    "dire-v1": "dire",
}
NoiseReduction = Literal["mean", "first"]
"""The DNF noise: the mean over the inversion, or its first step."""
PassCalls = Literal["all", "fewer"]
"""At which steps of inversion and sampling the ADM is called: at all, or at about half of them."""
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""Precision of ADM and teacher; part of what a feature is."""
PackedStorage = Literal["int8", "int4"]
"""Floats stored as integers, with one scale for each block of them."""
FloatStorage = Literal["float16", "float32", "int8", "int4"]
"""How a feature of floats is stored; part of what the feature is, since integers round its values."""
ShardForm = Literal["zarr", "webdataset"]
"""Format of new shards. It decides no value, and shards of the other format are reused."""
CodecChoice = Literal["auto", "none", "lz4", "zstd"]
"""Compression of new zarr shards; ``auto`` weighs bytes against the time of reading them. It decides no value."""
LAYOUT_NAMES = (
    *("distildire", "cnndet", "dire", "genimage", "real-fake", "drct-2m", "diffusiondb", "ai-artbench", "numbered"),
    *("class-folders", "metadata", "table", "parquet", "webdataset", "zip"),
)
"""Layouts of a source: structures of folders, tables, Parquet files with images, tars, or zips."""
Split = Literal["train", "val", "test"]
"""Split of a data set."""
ImportKind = Literal["distildire", "dire"]
"""Whose scripts wrote the files of an import."""

InitialWeights = Literal["scratch", "imagenet"]
"""Weights that a student's backbone starts from."""
ScheduleName = Literal["constant", "cosine", "step", "plateau", "accuracy-plateau"]
"""Schedule of the learning rate."""
ValSource = Literal["val", "train"]
"""Split of the validation rows: the dataset's own ``val`` where it has one, or rows held out of ``train``."""
Reader = Literal["cache", "webdataset"]
"""What reads the training rows: the cache's own reader, or webdataset from tars."""
Amp = Literal["off", "bf16", "fp16"]
"""Automatic mixed precision of the student."""
TestTransform = Literal["crop", "resize"]
"""How a test image gets the student's size: centre crop, as in the papers, or resize, as in training."""
TEST_TRANSFORMS: tuple[TestTransform, ...] = get_args(TestTransform)
ClusterColumn = Literal["auto", "image", "group", "generator", "family"]
"""What makes test images a cluster of the bootstrap."""
CLUSTER_COLUMNS: tuple[ClusterColumn, ...] = get_args(ClusterColumn)

BenchMethod = Literal["cnndet", "dire", "dnf", "distildire", "eps", "probe", "mean_dire", "sedid"]
"""Rows of the cost table; the first four in the order of DistilDIRE's paper."""
BENCH_METHODS: tuple[BenchMethod, ...] = get_args(BenchMethod)
BENCH_PAPERS = BENCH_METHODS[:5]
"""Those that are measured unless others are named."""
LineForm = Literal["jsonl", "csv"]
"""Formats of predictions that are written line by line."""
FileForm = Literal["json", "jsonl", "csv"]
"""Formats of a file of predictions, each also the suffix of its name."""
FILE_FORMS: tuple[FileForm, ...] = get_args(FileForm)

ADM = "adm256"
"""The diffusion model: guided-diffusion's unconditional ADM for 256 pixels."""
STEPS = "ddim20"
"""DDIM steps of the papers: DIRE costs 40 calls of the ADM, DNF 20."""
BACKBONE = "resnet50"
"""Backbone of teacher and student."""
LR_FACTOR = 0.1
"""Factor of a drop of the learning rate."""
METHOD = "distildire"
"""What a student learns from."""


IMAGE_ALGORITHMS = (2, 1)
"""Numbers of the rules that decode images, the newest first: ``algorithm`` of an image's spec."""


def preset_name(stored: object) -> object:
    """Return the option's word for the preset in an image's spec; anything else as it is."""
    return next((name for name, value in STORED_PRESETS.items() if value == stored), stored)


MIN_SIDE = 8
"""Fewest pixels of an image's shorter side."""
MAX_PIXELS = 178_956_970
"""Most pixels (width x height) an image may have: the number from which on Pillow itself refuses to open one."""
SHARD_SIZE = 512
"""Images in a new shard."""
TRIES = 4
"""Failures of a shard on workers after which a build goes on without it."""
COMPACT_ROWS = 512
"""Rows in a merged shard, at most."""
GRACE_HOURS = 24.0
"""Hours for which unreferenced data stay in a cache."""
KEEP_REVISIONS = 1
"""Newest revisions of each dataset that a collection keeps."""
SAMPLES_PER_TAR = 1000
"""Samples in a tar of an export."""

AUDIT_SAMPLE = 400
"""Images of each class whose pixels an audit examines."""
FRAMES = 16
"""Frames that are scored of a video."""
ROUNDS = 5
"""Rounds of measurements in a bench."""

PROFILES: dict[Profile, dict[str, dict[str, Any]]] = {
    "small": {
        "build": {"adm": "demo", "teacher": "efficientnet_lite0", "train_size": 96, "embedding": "efficientnet_lite0"},
        "train": {"backbone": "small32", "epochs": 40, "batch_size": 16, "lr": 1e-3},
        "bench": {"adm": "demo", "backbone": "small32"},
    },
    "paper": {
        "build": {"adm": ADM, "teacher": BACKBONE, "steps": STEPS, "embedding": BACKBONE},
        "train": {"backbone": BACKBONE},
        "bench": {"adm": ADM, "backbone": BACKBONE},
    },
}
"""Profile -> command -> the defaults that it replaces, by the name of the parameter.

``small`` runs offline on a CPU: the ADM is in this package and the teacher's weights come with ``distil-cache[demo]``.
At 96 pixels the maps of its teacher and its student have 3x3 positions. Small batches and many epochs let a few dozen
images make enough steps.
"""
