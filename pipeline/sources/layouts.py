"""Folder layouts: label, split, generator and group of images from the path of their folder.

A layout is a function from a :class:`.tree.Tree` to the folders (:class:`ImageFolder`) that it recognises; an empty
list means "not this layout". All files below such a folder belong to it, at any depth. To add a layout, add a function
with its pattern.

========== =========================================== ============= ============= ===============
layout     pattern                                     fakes are by  reals are by  group
========== =========================================== ============= ============= ===============
distildire SPLIT/images/{reals,fakes}                  ``fake``      ``real``      none
cnndet     SPLIT/GENERATOR[/CLASS]/{0_real,1_fake}     GENERATOR     GENERATOR     CLASS, if there
dire       SPLIT/GROUP/{real,GENERATOR...}             GENERATOR     ``real``      GROUP
genimage   GENERATOR/SPLIT/{ai,nature}                 GENERATOR     GENERATOR     none
real-fake  [SPLIT/]{real,fake}, in any case            ``fake``      ``real``      none
========== =========================================== ============= ============= ===============

* SPLIT is ``train``, ``val`` (also ``valid``, ``validation``) or ``test``. It is not reinterpreted: GenImage's
  ``val``, on which its paper tests, stays ``val``. ``real-fake`` without split folders is all ``train``.
* Where a folder holds the reals for its fakes (``cnndet``, ``genimage``), these carry its generator too, so that the
  test set of a generator includes its own reals. Elsewhere the reals are found by their group.
* In ``dire``, a folder is a GROUP if it has a subfolder ``real`` in one of the splits; its other subfolders are
  generators.
* The family follows from the generator's name (:func:`family_of`): reals that carry a generator have its family, the
  others have ``real``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from .tree import Tree, join

_FAMILIES = {
    "gan": "biggan cyclegan diffgan gaugan gigagan progan projectedgan stargan stylegan",
    "diffusion": "adm dall dalle ddim ddpm diffusion flux glide guided if iddpm imagen latent ldm midjourney pixart "
    "pndm sd sdv sdxl stable vqdiffusion vqdm wukong",
    "real": "real",
}
"""Family -> words in a generator's name. GANs come first: ``diff-stylegan`` is one."""


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """A folder (posix path relative to the root) whose images share these attributes; ``label`` 0 is real, 1 fake."""

    folder: str
    label: int
    split: str
    generator: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """A layout: its name, its pattern for messages, and the function that finds its folders."""

    name: str
    pattern: str
    leaves: Callable[[Tree], list[ImageFolder]]


LAYOUTS: dict[str, FolderLayout] = {}


def _layout(
    name: str, pattern: str
) -> Callable[[Callable[[Tree], list[ImageFolder]]], Callable[[Tree], list[ImageFolder]]]:
    def register(leaves: Callable[[Tree], list[ImageFolder]]) -> Callable[[Tree], list[ImageFolder]]:
        LAYOUTS[name] = FolderLayout(name, pattern, leaves)
        return leaves

    return register


@_layout("distildire", "{train,val,test}/images/{reals,fakes}")
def _distildire(tree: Tree) -> list[ImageFolder]:
    leaves = []
    for split, folder in tree.splits():
        if "images" in tree.folders(folder):
            images = join(folder, "images")
            leaves += _pair(tree, images, split, reals=("reals", "real"), fakes=("fakes", "fake"))
    return leaves


@_layout("cnndet", "{train,val,test}/GENERATOR[/CLASS]/{0_real,1_fake}")
def _cnndet(tree: Tree) -> list[ImageFolder]:
    leaves = []
    for split, folder in tree.splits():
        for generator in tree.folders(folder):
            reals, fakes = ("0_real", generator), ("1_fake", generator)
            parent = join(folder, generator)
            leaves += _pair(tree, parent, split, reals, fakes)
            for group in tree.folders(parent):
                if group not in ("0_real", "1_fake"):
                    leaves += _pair(tree, join(parent, group), split, reals, fakes, group)
    return leaves


@_layout("dire", "{train,val,test}/GROUP/{real,GENERATOR...}")
def _dire(tree: Tree) -> list[ImageFolder]:
    parents = [(split, group, join(folder, group)) for split, folder in tree.splits() for group in tree.folders(folder)]
    groups = {group for _, group, parent in parents if "real" in tree.folders(parent)}
    return [
        ImageFolder(join(parent, name), int(name != "real"), split, name, group)
        for split, group, parent in parents
        if group in groups
        for name in tree.folders(parent)
    ]


@_layout("genimage", "GENERATOR/{train,val}/{ai,nature}")
def _genimage(tree: Tree) -> list[ImageFolder]:
    leaves = []
    for generator in tree.folders():
        for split, folder in tree.splits(generator):
            leaves += _pair(tree, folder, split, reals=("nature", generator), fakes=("ai", generator))
    return leaves


@_layout("real-fake", "[{train,val,test}/]{real,fake}")
def _real_fake(tree: Tree) -> list[ImageFolder]:
    leaves = []
    for split, folder in (("train", ""), *tree.splits()):
        for name in tree.folders(folder):
            kind = name.casefold()
            if kind in ("real", "fake"):
                leaves.append(ImageFolder(join(folder, name), int(kind == "fake"), split, kind))
    return leaves


@cache
def family_of(generator: str) -> str:
    """Return the family of a generator by its name: ``gan``, ``diffusion``, ``real``, else ``unknown``.

    Only letters count: ``sd14``, ``SDv1_new1`` and ``stylegan2-ada`` match ``sd``, ``sdv`` and ``stylegan``.
    """
    words = set(re.findall("[a-z]+", generator.lower()))
    return next((family for family, known in _FAMILIES.items() if words & set(known.split())), "unknown")


def _pair(
    tree: Tree, parent: str, split: str, reals: tuple[str, str], fakes: tuple[str, str], group: str = ""
) -> list[ImageFolder]:
    """Return the leaves in ``parent``; ``reals`` and ``fakes`` are (name of the folder, generator)."""
    present = tree.folders(parent)
    return [
        ImageFolder(join(parent, name), label, split, generator, group)
        for label, (name, generator) in enumerate((reals, fakes))
        if name in present
    ]
