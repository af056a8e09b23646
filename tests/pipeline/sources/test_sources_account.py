"""Every file under a source's root is accounted for: taken, no image, hidden, not covered, or in a place that is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from distil_cache.errors import UserError
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.tree import MAX_DEPTH, MAX_REPEATS
from distil_cache.storage import RemotePath
from image_bytes import noise, saved
from remote_sources import put
from source_trees import plant

PICTURE = saved(noise(8, 8))


def written(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


FILES = {
    "real/a.png": b"no image at all",
    "real/0a1b2c": PICTURE,
    "real/b.dat": PICTURE,
    "real/notes.txt": b"text",
    "fake/c.JFIF": PICTURE,
    "fake/.hidden.png": PICTURE,
    "fake/empty": b"",
    ".git/d.png": PICTURE,
    "more/deep/e": PICTURE,
    "more/deep/f.png": b"x",
    "g.png": PICTURE,
}


def test_the_first_bytes_decide_what_is_an_image_and_the_sum_is_exact(tmp_path: Path) -> None:
    found = discover(written(tmp_path, FILES))
    assert [file.path for file in found.files] == ["fake/c.JFIF", "real/0a1b2c", "real/a.png", "real/b.dat"]
    account = found.account
    assert (account.files, account.images, account.not_images, account.hidden) == (11, 4, 2, 2)
    assert [(entry.folder, entry.images, entry.example) for entry in account.uncovered] == [
        ("", 1, "g.png"),
        ("more", 2, "more/deep/e"),
    ]
    account.check()


def test_a_store_is_accounted_for_as_a_folder_and_files_of_other_kinds_are_not_asked_for(
    tmp_path: Path, memory_bucket: RemotePath
) -> None:
    here = discover(written(tmp_path, FILES))
    there = discover(put(memory_bucket, FILES))
    assert [file.path for file in there.files] == [
        name for name in [file.path for file in here.files] if name != "real/b.dat"
    ]
    assert there.account.uncovered == here.account.uncovered
    assert (there.account.files, there.account.not_images, there.account.hidden) == (11, 3, 2)
    assert there.account.notes[0].startswith("2 files were not looked into")


def test_a_file_that_is_no_regular_one_is_no_image(tmp_path: Path) -> None:
    root = written(tmp_path, {"real/a.png": PICTURE, "fake/b.png": PICTURE})
    os.mkfifo(root / "real/pipe")
    (root / "real/gone").symlink_to(root / "nowhere")
    found = discover(root)
    assert [file.path for file in found.files] == ["fake/b.png", "real/a.png", "real/gone"]
    assert found.account.not_images == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    root = written(tmp_path, {"real/a.png": PICTURE, "fake/b.png": PICTURE, "fake/closed/c.png": PICTURE})
    (root / "fake/closed").chmod(0)
    try:
        account = discover(root).account
    finally:
        (root / "fake/closed").chmod(0o700)
    assert [(place.path, place.reason) for place in account.unreadable] == [
        ("fake/closed", "cannot be listed (Permission denied)")
    ]


def test_a_folder_that_cannot_be_listed_is_named_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = written(tmp_path, {"real/a.png": PICTURE, "fake/b.png": PICTURE, "fake/closed/c.png": PICTURE})
    scandir = os.scandir

    def refusing(path: str) -> os._ScandirIterator[str]:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = discover(root)
    assert [file.path for file in found.files] == ["fake/b.png", "real/a.png"]
    assert [place.path for place in found.account.unreadable] == ["fake/closed"]


def test_links_that_multiply_paths_end_in_a_sentence_within_a_second(tmp_path: Path) -> None:
    root = plant(tmp_path, ["fake/a.png", "real/b.png"])
    for level in range(20):
        (root / f"level{level}").mkdir()
    for level in range(19):
        for name in ("one", "two"):
            (root / f"level{level}" / name).symlink_to(root / f"level{level + 1}")
    with pytest.raises(UserError, match=f"more than {MAX_REPEATS:,} times"):  # 2^19 paths would take minutes
        discover(root)


def test_folders_nested_without_end_are_a_sentence(tmp_path: Path) -> None:
    root = plant(tmp_path, ["fake/a.png", "real/b.png"])
    with nested(root, 2000), pytest.raises(UserError, match=f"more than {MAX_DEPTH} deep"):
        discover(root)


@contextmanager
def nested(folder: Path, depth: int) -> Iterator[None]:
    """Nest folders deeper than a path may be long, and remove them: pytest, which is recursive, could not."""
    here = os.getcwd()  # noqa: PTH109
    try:
        os.chdir(folder)
        for _ in range(depth):
            os.mkdir("n")  # noqa: PTH102
            os.chdir("n")
        os.chdir(here)
        yield
    finally:
        os.chdir(folder)
        for _ in range(depth):
            os.chdir("n")
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("n")  # noqa: PTH106
        os.chdir(here)


def test_a_folder_may_be_shared_by_links_between_classes_but_counts_once_in_each(tmp_path: Path) -> None:
    root = plant(tmp_path / "set", ["a/0_real/x.png", "a/1_fake/y.png", "b/1_fake/z.png"])
    (root / "b/0_real").symlink_to(root / "a/0_real")
    (root / "b/1_fake/again").symlink_to(root / "a/1_fake")
    (root / "b/1_fake/twice").symlink_to(root / "a/1_fake")
    found = discover(root)
    assert [file.path for file in found.files] == [
        "a/0_real/x.png",
        "a/1_fake/y.png",
        "b/0_real/x.png",
        "b/1_fake/again/y.png",
        "b/1_fake/z.png",
    ]
    assert [place.path for place in found.account.unreadable] == ["b/1_fake/twice"]
    found.account.check()
