"""Folder layouts: label, split, generator and group of images from the path of their folder.

A layout is one or more rows of :data:`LAYOUTS`: a pattern of folder names (:mod:`.patterns`) and what it leaves unsaid.
To add a layout, add a row. For each folder, the first row of the layout that fits is taken, and all files below the
folder belong to it, at any depth.

* SPLIT is not reinterpreted: GenImage's ``val``, on which its paper tests, stays ``val``. A path without a split has
  the one that the user names, else the one that the root's own name means, else ``train``.
* Where a folder holds the reals for its fakes (``cnndet``, ``genimage``), these carry its generator too, so that the
  test set of a generator includes its own reals. Elsewhere the generator of reals is ``real``, and they are found by
  their group. Fakes without a named generator have ``fake``.
* The family follows from the generator's name (:func:`.families.family_of`): reals that carry a generator have its
  family, the others have ``real``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..words import label_of_word, normalised
from .families import family_of, is_known_generator
from .patterns import PathPattern, compile_pattern

__all__ = ["LAYOUTS", "FolderLayout", "ImageFolder", "LayoutRow", "custom_layout", "family_of", "is_pattern"]

_OF_CLASS = ("real", "fake")
"""Generator of images whose path names none, by label."""


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """A folder (posix path relative to the root) whose images share these attributes; ``label`` 0 is real, 1 fake.

    ``split`` is empty where nothing names it.
    """

    folder: str
    label: int
    split: str
    generator: str
    group: str = ""
    family: str = ""


@dataclass(frozen=True)
class LayoutRow:
    """One pattern of a layout.

    Attributes
    ----------
    pattern
        See :mod:`.patterns`.
    label
        Label of what the pattern matches, if it has no ``{label}``.
    generator
        Generator, if the pattern has no ``{generator}``.
    reals_beside
        The row counts only for groups in which another row finds reals.
    file_beside
        The row counts only for folders that contain a file with a name like this.
    """

    pattern: str
    label: int | None = None
    generator: str = ""
    reals_beside: bool = False
    file_beside: str = ""


@dataclass(frozen=True)
class FolderLayout:
    """A layout.

    Attributes
    ----------
    name
        Its name for ``--layout``.
    rows
        What its class folders look like.
    paired
        Whether reals carry the generator of the folder that they share with its fakes.
    keeps_name
        With ``paired``: reals in a split folder carry the generator even if it has no fakes.
    both
        The layout is recognised only where it finds real and generated images.
    whole
        The layout is recognised only where it covers every image.
    fallback
        The layout is recognised only where no other covers as many images, and, if it does not cover all, only where it
        finds both classes.
    labels
        What the user says that words of classes mean.
    """

    name: str
    rows: tuple[LayoutRow, ...]
    paired: bool = False
    keeps_name: bool = False
    both: bool = False
    whole: bool = False
    fallback: bool = False
    labels: tuple[tuple[str, int], ...] = ()

    @property
    def pattern(self) -> str:
        """The patterns, for messages."""
        return " or ".join(row.pattern for row in self.rows)

    @cached_property
    def patterns(self) -> tuple[tuple[LayoutRow, PathPattern], ...]:
        """The rows with their patterns, ready to match."""
        return tuple((row, compile_pattern(row.pattern, dict(self.labels))) for row in self.rows)

    def folder(self, path: str, row: LayoutRow, found: Mapping[str, str]) -> ImageFolder | None:
        """Return the class folder that a row has matched; None if nothing gives its label."""
        label = int(found["label"]) if "label" in found else row.label
        generator = found.get("generator", row.generator)
        if label is None:
            label = self._label_of_generator(generator)
        if label is None or (row.label == 1 and label_of_word(generator) == 0):
            return None  # a folder `reals` beside `real` is not that of a generator
        if not generator or (label == 0 and not self.paired):
            generator = _OF_CLASS[label]
        return ImageFolder(
            path, label, found.get("split", ""), generator, found.get("group", ""), found.get("family", "")
        )

    def _label_of_generator(self, generator: str) -> int | None:
        """Return the label that a generator's name gives where the pattern has no label. ``*`` is any other name."""
        words, name = dict(self.labels), normalised(generator)
        if name in words:
            return words[name]
        known = 1 if is_known_generator(generator) else label_of_word(name)
        return words.get("*") if known is None else known


_STYLES = "art_nouveau,baroque,expressionism,impressionism,post_impressionism,realism,renaissance,romanticism,surrealism,ukiyo*"

# fmt: off
LAYOUTS: dict[str, FolderLayout] = {layout.name: layout for layout in (
    # DistilDIRE
    FolderLayout("distildire", (
        LayoutRow("[{split}/]images/{label:reals,fakes}"),
    )),
    # ForenSynths (CNNDetection), AIGIBench, Chameleon, UniversalFakeDetect
    FolderLayout("cnndet", (
        LayoutRow("[{split}/][{generator}/[{class}/]]{label:0_real,1_fake}"),
    ), paired=True, keeps_name=True),
    # DiffusionForensics
    FolderLayout("dire", (
        LayoutRow("[images/]{split}/{group}/{label:real}"),
        LayoutRow("[images/]{split}/{group}/{generator}", label=1, reals_beside=True),
    )),
    # GenImage, as unzipped (ADM/imagenet_ai_0508_adm/...), without the outer or the inner level, and one generator
    FolderLayout("genimage", (
        LayoutRow("{generator}/[imagenet*/]{split}/{label:nature,ai}"),
        LayoutRow("{generator:imagenet*}/{split}/{label:nature,ai}"),
    ), paired=True, keeps_name=True),
    # CIFAKE, and what people make themselves
    FolderLayout("real-fake", (
        LayoutRow("[{split}/]{label:real,fake}"),
    )),
    FolderLayout("drct-2m", (
        LayoutRow("DRCT-2M/{generator}/{split}", label=1),
        LayoutRow("MSCOCO/{split}", label=0),
    )),
    FolderLayout("diffusiondb", (
        LayoutRow("[images/]part-*", label=1, generator="stable-diffusion", file_beside="part-*.json"),
    )),
    FolderLayout("ai-artbench", (
        LayoutRow("[{split}/]AI_LD_{group}", label=1, generator="latent-diffusion"),
        LayoutRow("[{split}/]AI_SD_{group}", label=1, generator="stable-diffusion"),
        LayoutRow("[{split}/]{group:%s}" % _STYLES, label=0),  # noqa: UP031
    ), both=True),
    FolderLayout("numbered", (
        LayoutRow("[{split}/]{label:0,1}"),
    ), both=True, whole=True),
    # Every word for a class, and generators by their names (Synthbuster)
    FolderLayout("class-folders", (
        LayoutRow("[{split}/][{generator}/[{class}/]]{label}"),
        LayoutRow("{generator:known}/[{class}/]{split}/{label}"),
        LayoutRow("[{split}/]{generator:known}", label=1),
        LayoutRow("{generator:known}/{split}", label=1),
    ), paired=True, fallback=True),
)}
# fmt: on


def is_pattern(layout: str) -> bool:
    """Check whether the value of ``--layout`` is a pattern of the user's rather than a name."""
    return any(letter in layout for letter in "{}*/[]")


def custom_layout(pattern: str, labels: Mapping[str, int]) -> FolderLayout:
    """Return the layout of a user's pattern. Raises UsageError if it cannot be read."""
    layout = FolderLayout(pattern, (LayoutRow(pattern),), paired=True, labels=tuple(labels.items()))
    _ = layout.patterns
    return layout
