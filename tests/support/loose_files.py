"""Folders of loose files, written the way the scripts of DistilDIRE and DIRE write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from image_bytes import saved
from numpy.typing import NDArray

SIDE = 16


def picture(seed: int, side: int = SIDE) -> NDArray[np.uint8]:
    """Return uint8 (side, side, 3) noise."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def eps_of(seed: int, side: int = SIDE) -> torch.Tensor:
    """Return float32 (3, side, side)."""
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed))


def write_distildire(root: Path, counts: dict[str, int], *, with_dire: bool = True) -> Path:
    """Write SPLIT/{images,eps,dire}/{reals,fakes}/NAME: as many of each class as ``counts`` says.

    The number of a sample is its seed: image ``n``, eps ``n``, dire ``n + 1000``. As in the script, an eps tensor is
    saved with the storage of its batch.
    """
    number = 0
    for split, count in counts.items():
        for kind in ("reals", "fakes"):
            for folder in ("images", "eps", "dire"):
                (root / split / folder / kind).mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                put_distildire(root / split, kind, number, with_dire=with_dire)
                number += 1
    return root


def put_distildire(folder: Path, kind: str, number: int, *, name: str = "", with_dire: bool = True) -> None:
    """Write one sample."""
    name = name or f"img{number:03d}.png"
    (folder / "images" / kind / name).write_bytes(saved(picture(number)))
    batch = torch.stack([eps_of(number), eps_of(9999)])
    torch.save(batch[0], folder / "eps" / kind / (name.split(".")[0] + ".pt"))
    if with_dire:
        (folder / "dire" / kind / name).write_bytes(saved(picture(number + 1000)))


def write_dire(root: Path, paths: list[str]) -> Path:
    """Write images/, recons/ and dire/ with these paths below each; the place in the list is the sample's number."""
    for number, path in enumerate(paths):
        for folder, offset in (("images", 0), ("recons", 2000), ("dire", 1000)):
            file = root / folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(saved(picture(number + offset)))
    return root
