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
    "drct-2m": ["DRCT-2M/sdxl-turbo/train2017/a.jpg", "DRCT-2M/lcm/val2017/b.jpg", "MSCOCO/train2017/c.jpg"],
    "diffusiondb": ["images/part-000001/a.png", "images/part-000002/b.png"],
    "ai-artbench": ["train/AI_LD_baroque/a.jpg", "test/AI_SD_realism/b.jpg", "train/ukiyo_e/c.jpg"],
    "numbered": ["train/0/a.png", "train/1/b.png", "test/1/c.png"],
    "class-folders": ["sd14/authentic/a.png", "sd14/AI-generated/b.png", "flux/generated/c.png"],
}
BESIDE = {"diffusiondb": ["images/part-000001/part-000001.json", "images/part-000002/part-000002.json"]}
"""Files of a layout that are no images."""


def plant(root: Path, paths: list[str]) -> Path:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return root
