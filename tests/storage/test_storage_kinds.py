"""Where a path lies is known to storage alone: other folders call its operations, and the questions they ask are listed."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from distil_cache import storage

ROOT = Path(storage.__file__).parent.parent
OTHERS = ("tests", "tools", "benchmarks", "docs", "storage")
KINDS = frozenset({"Path", "PosixPath", "PurePath", "PurePosixPath", "PathLike", "RemotePath"})
QUESTIONS = {
    "by_requests": {
        "cache/maintenance/verify.py": "a store that fails ends the check; a disk fails file by file",
        "cache/shards/tar.py": "rows are fetched in windows",
        "cache/shards/zarr.py": "chunks are fetched in windows",
        "cache/store.py": "hands the question on to loaders, and keeps more shards open, none of which holds a handle",
        "pipeline/execution/load.py": "many unreadable images mean that the store failed",
        "pipeline/scan/scan.py": "the same; and a store may know no times",
        "pipeline/sources/file.py": "hands the question on",
        "pipeline/sources/read.py": "how many threads read; archives are compared once, at the end",
        "pipeline/sources/tables/table.py": "objects get size and time from listings; files elsewhere are not looked for",
        "train/data/dataset.py": "how large a gap is read over",
        "train/data/readers.py": "how many threads read",
    },
    "file_in_place": {"cache/store.py": "a file is no place for a cache"},
    "has_links": {"cache/maintenance/trash.py": "saves looking for links"},
    "is_url": {
        "cli.py": "the error's sentence speaks of a store",
        "inference/arguments.py": "parses what the user wrote",
        "pipeline/sources/read.py": "parses what the user wrote",
        "pipeline/sources/tables/table.py": "parses what a table holds",
    },
    "protocol_of": {"pipeline/sources/file.py": "refuses web addresses and incomplete names of the Hub"},
}
"""What may be asked about a path, where, and what depends on the answer."""


@functools.cache
def modules() -> dict[str, ast.Module]:
    names = {path.relative_to(ROOT).as_posix(): path for path in ROOT.rglob("*.py")}
    return {
        name: ast.parse(path.read_text())
        for name, path in sorted(names.items())
        if name.split("/")[0] not in OTHERS and not name.startswith((".", "build/"))
    }


def names_in(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def branches(tree: ast.Module) -> list[int]:
    """Lines that ask for the class of a path, or name the class of paths in a store."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and names_in(node.func) & {"isinstance", "issubclass"}:
            asked = set().union(*map(names_in, node.args[1:]))
        elif isinstance(node, ast.Compare):
            calls = [call for call in ast.walk(node) if isinstance(call, ast.Call) and names_in(call.func) == {"type"}]
            asked = names_in(node) if calls else set()
        elif isinstance(node, ast.MatchClass):
            asked = names_in(node.cls)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            asked = {alias.name for alias in node.names} & {"RemotePath"}
        else:
            asked = {node.attr} & {"RemotePath"} if isinstance(node, ast.Attribute) else set()
        if asked & KINDS:
            found.append(node.lineno)
    return found


def test_no_other_folder_branches_by_the_class_of_a_path() -> None:
    assert {name: lines for name, tree in modules().items() if (lines := branches(tree))} == {}


def test_the_scan_sees_every_way_to_branch() -> None:
    code = (
        "isinstance(x, RemotePath)\nisinstance(x, str | pathlib.Path)\nissubclass(k, (int, Path))\ntype(x) is Path\n"
        "match x:\n    case Path():\n        pass\nfrom .storage import RemotePath\nstorage.RemotePath\n"
        "isinstance(x, AnyPath)\nisinstance(Path, type)\nx is Path\n"
    )
    assert sorted(branches(ast.parse(code))) == [1, 2, 3, 4, 6, 8, 9]


def test_what_other_folders_ask_about_a_path_is_listed_with_its_reason() -> None:
    asked: dict[str, set[str]] = {question: set() for question in QUESTIONS}
    for name, tree in modules().items():
        for question in names_in(tree) & asked.keys():
            asked[question].add(name)
    assert asked == {question: set(places) for question, places in QUESTIONS.items()}
