"""Move damaged files to the trash, so that the next build writes them again.

Nothing is deleted: a damaged file moves to a folder ``damaged`` near its old path, for shards the marker first. Removed
shards and records that are needed are restored. What cannot be repaired here is reported, with what would repair it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from ...errors import IntegrityError, UserError
from ...storage import AnyPath, path_exists, relative_name
from ...storage.atomic import cannot_write, create_file, fsync_folder, make_folder
from ...storage.trees import move_tree
from .. import set_aside
from ..index import file as index_file
from ..records.about import FILE as ABOUT
from ..records.builds import BuildRecord
from ..records.datasets import OF_REVISION
from ..shards.marker import read_marker
from ..store import Cache, FeatureStore
from .gc import trash_folder
from .roots import restore_named
from .trash import DAMAGED, SymlinkError, move_to_trash, refuse_symlinks, restore
from .verify import Problem, report

LOST = {"path": "", "reason": "lost", "detail": "the list was damaged and set aside by verify --repair"}


def repair(cache: Cache) -> dict[str, Any]:
    """Verify a cache, move what is damaged to the trash, and verify again.

    Returns
    -------
    dict
        The result of :func:`.verify.report` after the repair, where ``problems`` is the damage that remains, and:
        ``repaired`` (sentences about what was done), ``left`` (sentences about what was not touched because it cannot
        be read at the moment or is behind a symbolic link), and ``to_build`` (``dataset``, ``command`` and ``why``
        for each dataset that a build completes).

    Raises
    ------
    UserError
        If a file cannot be moved.
    """
    repaired: list[str] = []
    left: list[str] = []
    for problem in _distinct(report(cache)["problems"]):
        if problem.kind == "unreadable":
            left.append(f"{problem.what} It was not changed; if it stays unreadable, delete it by hand.")
            continue
        try:
            for what in _repair_problem(cache, problem):
                repaired.append(what)
        except SymlinkError as error:
            left.append(f"{error} So this was not changed: {problem.what}")
    after = report(cache)
    missing = [problem for problem in after["problems"] if problem["kind"] == "missing"]
    return {
        **after,
        "problems": [problem for problem in after["problems"] if problem["kind"] != "missing"],
        "repaired": repaired,
        "left": left,
        "to_build": list(_to_build(cache, missing)),
    }


def _distinct(problems: Iterable[dict[str, Any]]) -> Iterator[Problem]:
    """Yield one problem of each thing, since a damaged file can be moved only once."""
    seen: set[tuple[str | None, ...]] = set()
    for plain in problems:
        problem = Problem(**plain)
        subject = (problem.feature, problem.shard, problem.path, problem.kind)
        if subject not in seen:
            seen.add(subject)
            yield problem


def _repair_problem(cache: Cache, problem: Problem) -> Iterator[str]:
    if problem.kind == "missing":
        yield from _restore_missing(cache, problem)
    elif problem.shard is not None:
        yield from _trash_shard(cache, problem.feature, problem.shard)
    elif problem.path is not None:
        yield from _trash_file(cache, cache.root / problem.path)


def _restore_missing(cache: Cache, problem: Problem) -> Iterator[str]:
    """Restore what ``gc`` has removed and a record or a run still names."""
    if problem.shard is not None:
        store = FeatureStore(cache.root / "features" / problem.feature)
        for shard in restore_named(cache, store, _readable_records(cache)):
            yield f"{problem.feature}: shard {shard}, which gc had removed, is restored"
        return
    builds = cache.builds()
    for ref in builds.refs() if problem.feature == "refs" else ():
        path = builds.folder / f"{ref.build}.json"
        if not path_exists(path) and restore(cache.root, trash_folder(path) / path.name, path):
            yield f"builds/{path.name}, which gc had removed and run {ref.run} needs, is restored"
    for build in builds.ids() if problem.feature.startswith("builds/") else ():
        record = builds.read(build)
        for suffix in OF_REVISION:
            path = cache.datasets().folder / record.dataset / f"{record.revision}{suffix}"
            if not path_exists(path) and restore(cache.root, trash_folder(path) / path.name, path):
                name = f"datasets/{record.dataset}/{path.name}"
                yield f"{name}, which gc had removed and build {build} needs, is restored"


def _readable_records(cache: Cache) -> Iterator[BuildRecord]:
    for build in cache.builds().ids():
        try:
            yield cache.builds().read(build)
        except UserError:
            continue  # a problem of its own


def _trash_shard(cache: Cache, name: str, shard: str) -> Iterator[str]:
    """Move a shard's marker, then its data. The data of a damaged marker are left to ``gc``."""
    folder = cache.root / "features" / name
    path = folder / "shards" / f"{shard}.json"
    try:
        marker = read_marker(path)
    except IntegrityError:
        marker = None
    if not move_to_trash(cache.root, path, folder / DAMAGED):
        return
    if marker is not None:
        data = path.parent / marker.data
        try:
            move_tree(data, folder / DAMAGED / data.name)
        except FileNotFoundError:
            pass  # the damage was that the data are missing
        except OSError as error:
            raise cannot_write(folder / DAMAGED / data.name, error) from error
    fsync_folder(path.parent)
    rows = f"{marker.rows:,} rows" if marker is not None else "its rows"
    yield f"{name}: shard {shard} was moved to {DAMAGED}/; the next build computes {rows} again"


def _trash_file(cache: Cache, path: AnyPath) -> Iterator[str]:
    """Move one damaged file other than a shard's, and yield a sentence about the consequence."""
    name = relative_name(path, cache.root)
    if path.suffix == index_file.SUFFIX:
        refuse_symlinks(cache.root, path)
        path.unlink(missing_ok=True)
        yield f"{name} was deleted; it only made opening the feature fast"
        return
    if not move_to_trash(cache.root, path, path.parent / DAMAGED):
        return
    make_folder(path.parent)
    if path.name == "spec.json":
        yield f"{name} was moved to {DAMAGED}/; its shards stay, and a build with the same options writes it again"
    elif path.name == ABOUT:
        yield f"{name} was moved to {DAMAGED}/; its shards stay, and a build that makes this feature writes it again"
    elif path.name.startswith("HEAD-"):
        newest = cache.datasets().history(path.parent.name)[:1]
        yield (
            f"{name} was moved to {DAMAGED}/; the newest revision of {path.parent.name} is now "
            f"{newest[0] if newest else 'none'}"
        )
    elif path.name.endswith(".rejects.jsonl"):
        create_file(path, json.dumps(LOST, sort_keys=True).encode() + b"\n")
        yield f"{name} was moved to {DAMAGED}/; the files that this revision rejected are no longer known"
    elif path.parent.name == set_aside.FOLDER:
        yield f"{name} was moved to {DAMAGED}/; verify --sources --set-aside names its images again"
    elif path.parent.name == "refs":
        yield (
            f"{name} was moved to {DAMAGED}/; the run writes it again when it is resumed, and until then gc does not "
            "protect its build"
        )
    else:
        yield f"{name} was moved to {DAMAGED}/; building the same images with the same options writes it again"


def _to_build(cache: Cache, missing: Iterable[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield which datasets to build again, with what command and why."""
    why: dict[str, list[str]] = {}
    for problem in missing:
        why.setdefault(_dataset_of(cache, problem), []).append(problem["what"])
    for dataset, sentences in why.items():
        yield {
            "dataset": dataset,
            "command": f"distil-cache build {_sources(cache, dataset)} --cache {shlex.quote(str(cache.root))} "
            f"--dataset {shlex.quote(dataset or 'NAME')} (and the other options of the build before)",
            "why": " ".join(sentences),
        }


def _dataset_of(cache: Cache, problem: dict[str, Any]) -> str:
    """Return the dataset of a problem, or an empty string if it is not known."""
    if problem["feature"].startswith("datasets/"):
        return str(problem["feature"]).removeprefix("datasets/")
    for build in cache.builds().ids():
        if f"builds/{build}:" in problem["what"]:
            return cache.builds().read(build).dataset
    return ""


def _sources(cache: Cache, dataset: str) -> str:
    try:
        sources = sorted(set(cache.datasets().read(dataset).column("source").to_pylist()))
    except UserError:
        sources = []
    return " ".join(shlex.quote(source) for source in sources if source) or "SOURCE"
