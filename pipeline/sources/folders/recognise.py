"""Find the layout of a folder: the one that covers most of its images.

Every layout is tried. Where several cover as many images, the first in the table is taken, unless they disagree on a
label or a split: then the user is asked. A layout may also fit the part of its tree that lies below a folder deep
inside it (``imagenet_ai_0508_adm/`` of GenImage), or the tree may start one folder further down.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import NamedTuple

from ....errors import UserError
from ....storage import AnyPath, absolute
from ..file import printable
from ..tree import join
from ..words import label_of_word, normalised, split_of_word
from .census import Census
from .families import is_known_generator
from .layouts import FolderLayout, ImageFolder, LayoutRow, is_pattern
from .patterns import Found

_NAMES_ABOVE = 2
"""How many names of the root's own path a pattern may begin with."""

_LEVELS = 3
"""How many folders further down a data set may start."""
_CHILDREN = 50
"""Most folders that are searched for a data set of their own."""


@dataclass(frozen=True)
class LayoutFit:
    """A layout and the class folders that it finds, with paths relative to the census' base.

    Attributes
    ----------
    layout
        The layout.
    census
        What was searched.
    folders
        Path of a class folder -> what its images share.
    covered
        Number of images in them.
    """

    layout: FolderLayout
    census: Census
    folders: dict[str, ImageFolder]
    covered: int

    @property
    def is_complete(self) -> bool:
        """Whether every image is in a class folder."""
        return self.covered == self.census.total

    @property
    def has_both(self) -> bool:
        """Whether there are class folders of real and of generated images."""
        return len({folder.label for folder in self.folders.values()}) == 2

    @property
    def notes(self) -> list[str]:
        """What the layout takes for granted, or leaves open, a sentence each."""
        return _guesses(self)

    def owner(self, folder: str) -> ImageFolder | None:
        """Return the class folder that a folder belongs to: the nearest above it, or itself."""
        while True:
            if (found := self.folders.get(folder)) is not None:
                return found
            if not folder:
                return None
            folder = folder.rpartition("/")[0]


class _Match(NamedTuple):
    row: LayoutRow
    found: Found
    folder: ImageFolder


def recognise(
    census: Census, layouts: Sequence[FolderLayout], root: AnyPath, levels: int = _LEVELS
) -> LayoutFit | None:
    """Return the layout of a source, which may start in a folder below; None if no layout fits.

    Parameters
    ----------
    census
        The folders of the source.
    layouts
        What to try, the preferred first.
    root
        Path of the census' base.
    levels
        How many folders further down to look.

    Raises
    ------
    UserError
        If layouts that fit equally well disagree, or several folders are data sets of their own.
    """
    fit = best_fit(census, layouts, root)
    if levels == 0:
        return fit
    if fit is not None and fit.is_complete and not fit.layout.fallback:
        return _inside_wrapper(fit, layouts, root, levels) or fit
    children = [child for child in census.children() if census.below_each[child] and split_of_word(child) is None]
    if len(children) == 1 and not is_known_generator(children[0]) and census.below_each[children[0]] == census.total:
        below = recognise(census.below(children[0]), layouts, root / children[0], levels - 1)
        if below is not None and (below.is_complete or below.has_both):
            return below
    if fit is not None or len(children) > _CHILDREN:
        return fit
    inside = {
        child: below
        for child in children
        if (below := recognise(census.below(child), layouts, root / child, levels - 1)) is not None
        and (below.is_complete or below.has_both)
    }
    if len(inside) > 1:
        paths = " ".join(shlex.quote(printable(str(root / child))) for child in inside)
        raise UserError(
            f"{printable(str(root))}: holds {len(inside)} data sets, of the layouts "
            f"{', '.join(dict.fromkeys(fit.layout.name for fit in inside.values()))}. Give their folders: "
            f"distil-cache build {paths}. If the folders are generators, say so with a pattern such as --layout "
            "'{generator}/{split}/{label}'."
        )
    return next(iter(inside.values()), None)


def _inside_wrapper(fit: LayoutFit, layouts: Sequence[FolderLayout], root: AnyPath, levels: int) -> LayoutFit | None:
    """Return the layout of the only top folder if that was taken for a generator and holds the generators.

    So ``GenImage/imagenet_midjourney/train/ai`` is no image of a generator called GenImage.
    """
    census, generators = fit.census, {folder.generator for folder in fit.folders.values() if folder.label == 1}
    children = [child for child in census.children() if census.below_each[child]]
    if (
        is_pattern(fit.layout.name)
        or len(children) != 1
        or {*children} != generators
        or any(map(is_known_generator, generators))
    ):
        return None
    below = recognise(census.below(children[0]), layouts, root / children[0], levels - 1)
    if below is None or not below.is_complete:
        return None
    known = any(is_known_generator(folder.generator) for folder in below.folders.values() if folder.label == 1)
    return below if known else None


def best_fit(census: Census, layouts: Iterable[FolderLayout], root: AnyPath) -> LayoutFit | None:
    """Return the layout that covers most images; None if none covers any.

    Parameters
    ----------
    census
        The folders of the source.
    layouts
        What to try, the preferred first.
    root
        Path of the census' base.

    Raises
    ------
    UserError
        If layouts that fit equally well disagree.
    """
    known = list(layouts)
    fits = [fit for layout in known if not layout.fallback and (fit := fit_layout(layout, census)) is not None]
    fits.sort(key=lambda fit: -fit.covered)
    best = fits[0] if fits else None
    if best is None or not best.is_complete:
        above = absolute(root).parts[1:]
        inside = [
            fit
            for layout in known
            if not layout.fallback
            for count in range(1, _NAMES_ABOVE + 1)
            if (fit := fit_layout(layout, census, above[-count:])) is not None
        ]
        best = max([*fits, *inside], key=lambda fit: fit.covered, default=None)
    if best is not None and best.is_complete:
        _refuse_disagreement(best, fits, root)
        return best
    fallback = max(
        (fit for layout in known if layout.fallback and (fit := fit_layout(layout, census)) is not None),
        key=lambda fit: fit.covered,
        default=None,
    )
    if best is None or (fallback is not None and fallback.is_complete and _agree(best, fallback)):
        return fallback
    _refuse_disagreement(best, fits, root)
    _refuse_parts(best, fits, root)
    return fallback if fallback and fallback.covered > best.covered and _agree(best, fallback) else best


def fit_layout(layout: FolderLayout, census: Census, above: Sequence[str] = ()) -> LayoutFit | None:
    """Return the class folders of one layout, or None if there are none with images.

    Parameters
    ----------
    layout
        The layout.
    census
        The folders of the source.
    above
        Names of the base's own path with which the pattern begins; see :meth:`.patterns.PathPattern.match_from`.
    """
    if above and not any(pattern.may_begin(above) for _, pattern in layout.patterns):
        return None
    matches = _beside_reals(_matches(layout, census, above))
    folders = {path: match.folder for path, match in matches.items() if census.below_each[path]}
    covered = sum(census.below_each[path] for path in folders)
    both = layout.both or (layout.fallback and covered != census.total)
    labels = {folder.label for folder in folders.values()}
    if not covered or (both and len(labels) < 2) or (layout.whole and covered != census.total):
        return None
    if layout.paired:
        fakes = {folder.generator for folder in folders.values() if folder.label == 1}
        folders = {
            path: _unpaired(matches[path], fakes, keep=layout.keeps_name and "split" in matches[path].found)
            for path in folders
        }
    folders = _with_generators_below(folders, census)
    if not is_pattern(layout.name):  # all below what the user's own pattern describes belongs to it
        folders = _with_generators_below(_with_splits_below(folders, census), census)
    return LayoutFit(layout, census, folders, covered)


def _matches(layout: FolderLayout, census: Census, above: Sequence[str]) -> dict[str, _Match]:
    """Return the class folders by their paths; no folder inside another.

    In a fallback, a folder that holds one named for the other class is not a class folder: its name means another thing.
    """
    found: dict[str, _Match] = {}
    below = _labels_below(layout, census) if layout.fallback else {}
    deepest = max(pattern.depth for _, pattern in layout.patterns) - len(above)
    pending: list[tuple[str, tuple[str, ...]]] = [("", ())]
    while pending:
        folder, parts = pending.pop()
        if folder in census.features:
            continue
        match = _match(layout, census, folder, parts, above)
        if match is not None and 1 - match.folder.label not in below.get(folder, ()):
            found[folder] = match
        elif len(parts) < deepest:
            start = len(folder) + 1 if folder else 0
            pending += ((subfolder, (*parts, subfolder[start:])) for subfolder in census.subfolders[folder])
    return dict(sorted(found.items()))


def _labels_below(layout: FolderLayout, census: Census) -> dict[str, set[int]]:
    """Return for each folder the labels that names of folders below it mean: words, and known generators."""
    words = dict(layout.labels)
    found: dict[str, set[int]] = {}
    for folder in census.images:
        above, _, name = folder.rpartition("/")
        label = words.get(normalised(name), 1 if is_known_generator(name) else label_of_word(name))
        while label is not None and label not in found.setdefault(above, set()):
            found[above].add(label)
            above = above.rpartition("/")[0]
    return found


def _match(
    layout: FolderLayout, census: Census, folder: str, parts: Sequence[str], above: Sequence[str]
) -> _Match | None:
    for row, pattern in layout.patterns:
        said = pattern.match_from(above, parts) if above else pattern.match(parts)
        if said is None:
            continue
        if row.file_beside and not any(fnmatch(name, row.file_beside) for name in census.others[folder]):
            continue
        image_folder = layout.folder(folder, row, said)
        if image_folder is not None:
            return _Match(row, said, image_folder)
    return None


def _beside_reals(matches: dict[str, _Match]) -> dict[str, _Match]:
    """Leave out folders of generators in groups without reals, where the row asks for them."""
    groups = {match.folder.group for match in matches.values() if match.folder.label == 0}
    return {
        path: match for path, match in matches.items() if not match.row.reals_beside or match.folder.group in groups
    }


def _unpaired(match: _Match, fakes: Collection[str], *, keep: bool) -> ImageFolder:
    """Return a class folder of reals without its generator if that has no fakes: it is only the name of a source.

    With ``keep``, the name stays.
    """
    folder = match.folder
    if folder.label == 1 or keep or "generator" not in match.found or folder.generator in fakes:
        return folder
    return replace(folder, generator="real")


def _with_splits_below(folders: dict[str, ImageFolder], census: Census) -> dict[str, ImageFolder]:
    """Divide class folders that name no split by the folders in them that name one, as in ``real/train``."""
    found, left = dict(folders), {path: census.below_each[path] for path in folders}
    for below, split in _splits_below(folders, census):
        owner = _nearest(folders, below)
        if owner is not None:
            left[owner] -= census.below_each[below]
            found[below] = replace(folders[owner], folder=below, split=split)
    return {path: folder for path, folder in found.items() if left.get(path) != 0}


def _splits_below(folders: dict[str, ImageFolder], census: Census) -> list[tuple[str, str]]:
    """Return the folders named for splits, with images, in class folders that name no split; none inside another."""
    found: dict[str, str] = {}
    for path in census.images:  # a folder comes before those in it
        split = split_of_word(path.rpartition("/")[2])
        if split is None or path in folders or not census.below_each[path] or _nearest(found, path) is not None:
            continue
        owner = _nearest(folders, path)
        if owner is not None and not folders[owner].split:
            found[path] = split
    return list(found.items())


def _nearest(folders: Container[str], path: str) -> str | None:
    """Return the folder among some that is the nearest above a path; None if there is none."""
    while path:
        path = path.rpartition("/")[0]
        if path in folders:
            return path
    return None


def _with_generators_below(folders: dict[str, ImageFolder], census: Census) -> dict[str, ImageFolder]:
    """Divide class folders of fakes that name no generator by their subfolders, if one is the name of a known one."""
    found = dict(folders)
    for path, folder in folders.items():
        if folder.generator == "fake":
            below = {subfolder: subfolder.rpartition("/")[2] for subfolder in census.subfolders[path]}
            names = {subfolder: name for subfolder, name in below.items() if split_of_word(name) is None}
            if any(map(is_known_generator, names.values())):
                found |= {
                    subfolder: replace(folder, folder=subfolder, generator=name)
                    for subfolder, name in names.items()
                    if subfolder not in folders
                }
    return found


def _guesses(fit: LayoutFit) -> list[str]:
    """Return what a layout takes for granted, or leaves open, a sentence each."""
    census, folders = fit.census, fit.folders
    taken = {
        folder.generator
        for path, folder in folders.items()
        if folder.generator != "fake" and (above := _nearest(folders, path)) and folders[above].generator == "fake"
    }
    splits = {path.rpartition("/")[2] for path, _ in _splits_below(folders, census)}
    inside = {
        subfolder.rpartition("/")[2]
        for path, folder in folders.items()
        if folder.generator == "fake"
        for subfolder in census.subfolders[path]
        if subfolder not in folders and split_of_word(subfolder.rpartition("/")[2]) is None
    }
    notes = []
    if splits:
        notes.append(
            f"Folders named for splits ({_shown(splits)}) lie below what the pattern describes and are not read as such. "
            "If they are splits, say so with a pattern such as --layout '{label}/{split}'."
        )
    if taken:
        notes.append(f"Subfolders of generated images are taken for generators: {_shown(taken)}.")
    if inside:
        notes.append(
            f"Generated images in subfolders ({_shown(inside)}) all have the generator `fake`. If the subfolders are "
            f"generators, {_declare(fit, min(inside))}"
        )
    if odd := [join(census.base, path) for path in census.images if _means_other(fit, path)]:
        notes.append(f"Folders whose names mean the other class than the folder that they are in: {_shown(odd)}.")
    return notes


def _declare(fit: LayoutFit, name: str) -> str:
    """Say how subfolders of generated images, such as ``name``, are declared to be generators."""
    folders = fit.folders.values()
    if any(folder.split for folder in folders) or any(
        fit.census.subfolders[one.folder] for one in folders if not one.label
    ):
        pattern = "{split}/{label}/{generator}" if any(folder.split for folder in folders) else "{label}/{generator}"
        return f"say so with a pattern such as --layout '{pattern}'."
    named = printable(name)
    return f"declare each in place of the source: --real DIR --fake {shlex.quote(f'{named}=DIR')}."


def _means_other(fit: LayoutFit, path: str) -> bool:
    label = label_of_word(path.rpartition("/")[2])
    if label is None or path in fit.folders or fit.census.is_feature(path):
        return False
    owner = fit.owner(path)
    return owner is not None and owner.label != label


def _shown(names: Collection[str]) -> str:
    return printable(", ".join(sorted(names)[:5])) + (", ..." if len(names) > 5 else "")


def _refuse_disagreement(best: LayoutFit, fits: Sequence[LayoutFit], root: AnyPath) -> None:
    """Raise UserError if another layout covers as many images and gives some another label or split."""
    for fit in fits:
        if fit is not best and fit.covered == best.covered and _differ(best, fit):
            raise UserError(
                f"{printable(str(root))}: fits the layouts {best.layout.name} and {fit.layout.name}, which differ in labels or "
                "splits. Name one of them with --layout."
            )


def _refuse_parts(best: LayoutFit, fits: Sequence[LayoutFit], root: AnyPath) -> None:
    """Raise UserError if another layout covers images that the best one does not."""
    for fit in fits:
        if fit is not best and any(best.owner(path) is None for path in fit.folders):
            raise UserError(
                f"{printable(str(root))}: parts of it fit the layouts {best.layout.name} and {fit.layout.name}. Name one of them "
                "with --layout, or give the parts as sources of their own."
            )


def _differ(one: LayoutFit, other: LayoutFit) -> bool:
    """Check whether two layouts give an image different labels or splits."""
    return any(b is not None and (a.label, a.split) != (b.label, b.split) for a, b in _owners(one, other))


def _agree(one: LayoutFit, other: LayoutFit) -> bool:
    """Check whether the second layout says of all images of the first what that says."""
    return all(b is not None and replace(a, folder="") == replace(b, folder="") for a, b in _owners(one, other))


def _owners(one: LayoutFit, other: LayoutFit) -> Iterator[tuple[ImageFolder, ImageFolder | None]]:
    """Yield the class folders that two layouts give a folder, where the first gives one."""
    for folder in {**one.folders, **other.folders}:
        if (owner := one.owner(folder)) is not None:
            yield owner, other.owner(folder)
