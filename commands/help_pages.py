"""The help page of each command: its options and arguments in groups, and two examples.

What no group names is listed last, under "Output". A test compares the names with the commands and parses the examples.
"""

from __future__ import annotations

from collections.abc import Mapping

RECIPES = ("build", "train")
"""Commands that read their options from a recipe file."""

_SOURCE_READING = ("layout", "labels", "columns", "path_prefix")
_ADM = ("adm", "adm_config", "class_label", "sha256")

PANELS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "build": {
        "What to build": ("sources", "cache", "dataset", "profile", "features", "set_fields"),
        "Reading the sources": (
            *("real", "fake", *_SOURCE_READING, "split", "split_by", "split_seed"),
            *("one_class", "min_side", "max_pixels", "rehash"),
        ),
        "Instead of sources": ("from_cache", "perturb", "splits", "derived_name"),
        "Image": ("image_size", "image_preset", "harmonize"),
        "Diffusion model": (*_ADM, "steps", "real_step", "calls", "clip", "noise", "precision", "storage"),
        "Teacher": ("teacher", "teacher_weights", "train_size", "preset"),
        "Other networks": ("embedding", "embedding_weights", "autoencoder", "lpips"),
        "Speed and storage": ("device", "batch_size", "memory", "compile_adm", "shard_size", "form", "codec"),
        "Several processes": ("workers", "scheduler", "array", "tries"),
        "Planning": ("dry_run", "price", "calibrate", "write_recipe"),
    },
    "train": {
        "What to train": ("cache", "dataset", "run", "profile", "method", "preset", "select", "build"),
        "Student": ("backbone", "initial_weights", "init_from", "train_size", "seed"),
        "Loss and teacher": ("kd_weight", "pos_weight", "teacher_online", "teacher", "teacher_weights"),
        "Length and batches": ("epochs", "stop_after", "batch_size", "accumulate", "clip_grad", "amp", "aug_prob"),
        "Learning rate": (
            *("lr", "schedule", "warmup_steps", "drop_every", "patience", "lr_factor", "min_lr"),
            *("beta1", "weight_decay"),
        ),
        "Validation": ("val_from", "val_fraction"),
        "Several runs, and again": ("sweep", "resume"),
        "Planning": ("dry_run", "write_recipe"),
        "Reading": ("device", "workers", "reader", "export", "local_copy", "local_copy_gib"),
    },
    "evaluate": {
        "What to score": ("run", "cache", "dataset", "split", "select", "build_id", "test_transform"),
        "Intervals": ("cluster",),
        "Speed": ("device", "local_copy", "local_copy_gib"),
    },
    "report": {
        "What to compare": ("runs", "compare", "out", "bench"),
        "Intervals": ("cluster",),
        "Missing evaluations": ("evaluate", "on", "device"),
    },
    "audit": {
        "What to audit": ("sources", "cache", "dataset", "build", "sample"),
        "Reading the sources": _SOURCE_READING,
        "A trained detector": ("swap", "harmonize", "adm"),
    },
    "predict": {
        "What to score": ("paths", "frames"),
        "Student": ("run", "weights", "method", "threshold", "test_transform"),
        "Diffusion model": (*_ADM, "cache", "precision"),
        "Other networks": ("weights_of",),
        "Speed": ("device", "batch_size", "workers"),
        "Results": ("out", "form", "explain"),
    },
    "bench": {
        "What to measure": ("profile", "method", "backbone", "size", "batch_size", "rounds", "timing"),
        "Diffusion model": (*_ADM, "random_adm", "precision"),
        "Speed": ("device",),
    },
    "features": {},
    "demo": {},
    "cache ls": {},
    "cache diff": {"What to compare": ("cache", "a", "b")},
    "cache verify": {
        "What to check": ("cache", "repair"),
        "Against the sources": ("sources", "more_sources", "set_aside", *_SOURCE_READING),
    },
    "cache gc": {"What to delete": ("cache", "yes", "grace", "keep_revisions")},
    "cache compact": {"What to merge": ("cache", "rows")},
    "cache export": {
        "What to export": ("cache", "dataset", "build", "features", "split"),
        "Where and how": ("out", "samples_per_shard", "seed"),
    },
    "cache import": {
        "What to import": ("cache", "sources", "dataset", "kind", "origin", "features", "layout"),
        "Images": ("resize", "lossy"),
        "Teacher": ("teacher", "teacher_weights", "preset", "train_size", "device"),
        "Storage": ("storage", "shard_size", "form", "codec"),
    },
    "checkpoint import": {"What to import": ("file", "run", "method")},
    "checkpoint export": {"What to export": ("run", "file", "card")},
}
"""Command -> title of a group -> the names of its parameters, in their order."""

EXAMPLES: Mapping[str, tuple[str, str]] = {
    "build": (
        "distil-cache build photos --cache c --dataset mine --split-by 70/15/15 --profile small",
        "distil-cache build data/genimage --cache c --dataset genimage --dry-run",
    ),
    "train": (
        "distil-cache train --cache c --dataset mine --run runs/a --profile small --dry-run",
        "distil-cache train --cache c --dataset mine --run sweep --sweep kd_weight=0,0.5 --sweep seed=0,1,2",
    ),
    "evaluate": (
        "distil-cache evaluate runs/a",
        "distil-cache evaluate runs/a --dataset other --select 'generator=adm|ldm'",
    ),
    "report": (
        "distil-cache report runs/a runs/b --out report",
        "distil-cache report --compare sweep-a sweep-b --out report",
    ),
    "audit": (
        "distil-cache audit photos",
        "distil-cache audit --swap runs/a --sample 200 --harmonize jpeg:95",
    ),
    "predict": (
        "distil-cache predict holiday.jpg album/ --run runs/a",
        "distil-cache predict 'album/**/*.jpg' --run runs/a --out scores.csv",
    ),
    "bench": (
        "distil-cache bench --profile small",
        "distil-cache bench --random-adm --no-timing --out bench.json",
    ),
    "features": ("distil-cache features", "distil-cache features --json"),
    "demo": ("distil-cache demo", "distil-cache demo --out /tmp/demo --json"),
    "cache ls": ("distil-cache cache ls c", "distil-cache cache ls s3://BUCKET/FOLDER --json"),
    "cache diff": (
        "distil-cache cache diff c 1f3a 90c2",
        "distil-cache cache diff c other-cache",
    ),
    "cache verify": (
        "distil-cache cache verify c --repair",
        "distil-cache cache verify c --sources photos --set-aside",
    ),
    "cache gc": ("distil-cache cache gc c", "distil-cache cache gc c --yes --grace 48"),
    "cache compact": ("distil-cache cache compact c", "distil-cache cache compact c --rows 2048"),
    "cache export": (
        "distil-cache cache export c --dataset mine --out tars",
        "distil-cache cache export c --dataset mine --build 0123456789abcdef --out tars --features image,eps",
    ),
    "cache import": (
        "distil-cache cache import c loose --dataset theirs --kind distildire",
        "distil-cache cache import c loose --dataset theirs --kind dire --teacher resnet50",
    ),
    "checkpoint import": (
        "distil-cache checkpoint import model.pth --run runs/theirs",
        "distil-cache checkpoint import model.pth --run runs/theirs --method eps",
    ),
    "checkpoint export": (
        "distil-cache checkpoint export runs/a student.pth",
        "distil-cache checkpoint export runs/a model/student.onnx --card",
    ),
}
"""Command -> two examples."""
