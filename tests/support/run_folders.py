"""Run folders written by hand, as training and evaluation leave them, for the tests of the report."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Rows = list[dict[str, Any]]


def rows(sharpness: Mapping[str, float], *, reals: int = 40, fakes: int = 30, seed: int = 0, group: str = "g") -> Rows:
    """Rows of scores.parquet: shared reals and each generator's fakes, better told apart where sharpness is higher.

    The keys do not depend on ``seed`` (only the scores do), so that several runs score the same images.
    """
    rng = np.random.default_rng(seed)
    found = [_row(f"real {n}", 0, "", group, -1.0 + rng.normal()) for n in range(reals)]
    for generator, shift in sharpness.items():
        found += [_row(f"{generator} {n}", 1, generator, group, shift - 1.0 + rng.normal()) for n in range(fakes)]
    return found


def write_run(
    folder: Path, *, method: str = "distildire", kd_weight: float = 0.5, seed: int = 0, seen: Sequence[str] = ("adm-a",)
) -> Path:
    """A finished training of three epochs, without evaluation."""
    folder.mkdir(parents=True)
    fingerprints = {"image": "1" * 64, "eps": "2" * 64} | ({"teacher": "3" * 64} if kd_weight else {})
    record = {
        "version": 1,
        "run": f"{folder.name}-00000000",
        "config": {
            "dataset": "photos",
            "select": None,
            "build": None,
            "method": method,
            "kd_weight": kd_weight,
            "backbone": "small",
            "epochs": 3,
            "batch_size": 8,
            "lr": 1e-4,
            "seed": seed,
        },
        "cache": "cache",
        "dataset": "photos",
        "revision": "abcdef0123456789",
        "build": "0123456789abcdef",
        "fingerprints": fingerprints,
        "seen_generators": list(seen),
        "samples": {"train": 216, "val": 24},
        "created": "2024-05-06T07:08:09Z",
        "versions": {"torch": "2.0"},
    }
    (folder / "config.json").write_text(json.dumps(record))
    with (folder / "metrics.jsonl").open("w") as stream:
        for epoch in range(1, 4):
            bce = 0.7 / epoch + 0.01 * seed
            kd = 0.3 / epoch if kd_weight else None
            line = {"epoch": epoch, "step": 27 * epoch, "loss": bce + (kd or 0), "bce": bce, "kd": kd}
            line |= {"val_bce": bce + 0.05, "val_ap": 1 - bce / 2, "val_acc": 0.8, "lr": 1e-4, "seconds": 1.0}
            stream.write(json.dumps(line) + "\n")
    return folder


def write_evaluation(
    run: Path,
    scored: Rows,
    *,
    name: str = "photos-test-crop",
    transform: str = "crop",
    applied: str = "",
    dire: bool = False,
    gallery: int = 0,
    set_aside: dict[str, int] | None = None,
) -> Path:
    """An evaluation of the run with the given rows; DIRE means and a gallery of the first images where asked.

    applied : what ``transform`` came to, where that is something else.
    """
    folder = run / "evaluations" / name
    folder.mkdir(parents=True)
    record = json.loads((run / "config.json").read_text())
    info = {
        "dataset": "photos",
        "revision": "abcdef0123456789",
        "build": record["build"],
        "split": "test",
        "transform": transform,
        "select": None,
        "checkpoint": {"file": "best.safetensors", "epoch": 3, "sha256": "4" * 64},
        "applied_transform": applied or transform,
        "set_aside": set_aside or {},
        "method": record["config"]["method"],
        "seen_generators": record["seen_generators"],
    }
    (folder / "evaluation.json").write_text(json.dumps(info))
    table = pa.Table.from_pylist(scored, schema=_SCORES)
    pq.write_table(table, folder / "scores.parquet")
    if dire:
        rng = np.random.default_rng(7)
        means = [0.05 - 0.02 * row["label"] + 0.01 * rng.random() for row in scored]
        kept = table.select(["key", "label", "generator", "group"])
        pq.write_table(kept.append_column("mean_dire", pa.array(means, pa.float32())), folder / "dire.parquet")
    if gallery:
        _write_gallery(folder / "gallery", [*scored[:gallery], *scored[-gallery:]])
    return folder


_SCORES = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int8()),
        ("generator", pa.string()),
        ("family", pa.string()),
        ("group", pa.string()),
        ("score", pa.float32()),
        ("logit", pa.float32()),
    ]
)


def _row(name: str, label: int, generator: str, group: str, logit: float) -> dict[str, Any]:
    key = hashlib.sha256(name.encode()).hexdigest()[:32]
    family = "diffusion" if label else ""
    score = 1 / (1 + np.exp(-logit))
    row = {"key": key, "label": label, "generator": generator, "family": family, "group": group}
    return row | {"score": score, "logit": logit}


def _write_gallery(folder: Path, shown: Rows) -> None:
    folder.mkdir()
    entries = []
    for number, row in enumerate(shown):
        entry: dict[str, Any] = {name: row[name] for name in ("key", "label", "generator", "score")}
        for place, name in enumerate(("image", "eps", "dire")):
            entry[name] = f"{number:03d}-{name}.png"
            (folder / entry[name]).write_bytes(_png(number, place))
        entries.append(entry)
    (folder / "gallery.json").write_text(json.dumps(entries))


def _png(number: int, place: int) -> bytes:
    y, x = np.mgrid[0:32, 0:32]
    smooth = np.stack([x * 8, y * 8, (x + y + number * 9) * 3 % 256], axis=-1)
    noise = np.random.default_rng(number).normal(128, 40, (32, 32, 3))
    pixels = (smooth, noise, np.abs(noise - 128))[place]
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
