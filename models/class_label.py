"""The class that a class-conditional diffusion model is told for each image. Loads without torch.

The images of a detector have no class of ImageNet. DIRE's script draws one at random for each image and uses it in
inversion and sampling. Here the draw depends on a seed and the image's key alone, so it is the same in any order, batch
or process, and on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError

NUM_CLASSES = 1000
"""Classes of guided-diffusion's class-conditional models: those of ImageNet."""
_FORM = re.compile(r"random:(?P<seed>[0-9]{1,18})|(?P<number>[0-9]{1,4})")


@dataclass(frozen=True)
class ClassLabel:
    """A choice of classes: one for all images, or one drawn for each.

    Attributes
    ----------
    text
        ``random:SEED`` or a number, in its shortest form.
    """

    text: str

    @classmethod
    def parse(cls, text: str) -> ClassLabel:
        """Parse the value of ``--class-label``. Raises UsageError for anything but ``random:SEED`` or a class."""
        found = _FORM.fullmatch(text.strip())
        if found is None or (found["number"] and int(found["number"]) >= NUM_CLASSES):
            raise UsageError(
                f"--class-label {text}: give random:SEED, such as random:0, or a class from 0 to {NUM_CLASSES - 1}."
            )
        return cls(f"random:{int(found['seed'])}" if found["seed"] else str(int(found["number"])))

    def classes(self, keys: Sequence[str]) -> list[int]:
        """Return the class of each image by its key."""
        kind, _, seed = self.text.partition(":")
        return [_drawn(seed, key) if seed else int(kind) for key in keys]


def _drawn(seed: str, key: str) -> int:
    digest = hashlib.sha256(f"class label {seed} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % NUM_CLASSES
