"""A small tree of files in each layout that sources may have."""

from __future__ import annotations

from pathlib import Path

# A listing never opens a file, so these need not be images.
TREES = {
    "distildire": ["train/images/reals/a.png", "train/images/fakes/b.png", "test/images/fakes/c.png"],
    "cnndet": [
        "train/progan/horse/0_real/a.png",
        "train/progan/horse/1_fake/b.png",
        "val/adm/0_real/c.png",
        "val/adm/1_fake/d.png",
    ],
    "dire": [
        "train/imagenet/real/n01/a.JPEG",
        "train/imagenet/adm/b.png",
        "test/imagenet/sdv1/c.png",
        "test/lsun_bedroom/real/d.jpg",
        "test/lsun_bedroom/stylegan/e.png",
    ],
    "genimage": ["Midjourney/train/ai/a.png", "Midjourney/val/nature/b.JPEG", "BigGAN/val/ai/c.png"],
    "real-fake": ["train/REAL/a.jpg", "train/FAKE/b.jpg", "test/REAL/c.jpg"],
}


def plant(root: Path, paths: list[str]) -> Path:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return root
