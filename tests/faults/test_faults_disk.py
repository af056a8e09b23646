"""Builds on a disk that fills up, breaks, or may only be read: one sentence, nothing lost, and the next build is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fault_checks import told_by
from fault_disk import can_mount

FORMS = pytest.mark.parametrize("form", ["zarr", pytest.param("webdataset", marks=pytest.mark.slow)])
SENTENCE = {"full": "No space left on device). Free some space", "broken": "Input/output error)"}


def run(what: str, folder: Path, form: str = "zarr") -> list[dict[str, Any]]:
    return told_by("fault_disk.py", what, folder, form)


@FORMS
def test_a_full_disk_is_one_sentence_and_with_more_room_the_build_goes_on(fast_folder: Path, form: str) -> None:
    if not can_mount(fast_folder):
        pytest.skip("this process may not mount a file system")
    tries = run("full", fast_folder, form)
    assert [one for one in tries if one["wrong"]] == []
    assert len(tries) >= 3
    assert tries[-1]["kind"] == "done"
    for one in tries[:-1]:
        assert one["kind"] == "UserError"
        assert SENTENCE["full"] in one["text"]
        assert one["text"].startswith(str(fast_folder / "disk" / "cache"))


def test_a_limit_on_the_size_of_files_is_one_sentence_and_without_it_the_build_goes_on(fast_folder: Path) -> None:
    tries = run("limited", fast_folder)
    assert [one for one in tries if one["wrong"]] == []
    assert {one["kind"] for one in tries} == {"UserError", "done"}
    assert all("ulimit -f" in one["text"] for one in tries if one["kind"] == "UserError")


@FORMS
def test_a_refused_or_interrupted_call_in_any_stage_leaves_a_sound_cache(fast_folder: Path, form: str) -> None:
    tries = run("refused", fast_folder, form)
    assert [one for one in tries if one["wrong"]] == []
    assert len(tries) >= 11
    for one in tries:
        if one["act"] == "interrupt":
            assert one["kind"] == "KeyboardInterrupt"
        elif one["kind"] != "done":  # what is only a speed-up may fail
            assert one["kind"] == "UserError"
            assert SENTENCE[one["act"]] in one["text"]


def test_what_goes_wrong_after_the_link_does_not_take_the_data_of_a_shard_that_exists(fast_folder: Path) -> None:
    tries = run("after-the-link", fast_folder)
    assert [one["kind"] for one in tries] == ["UserError", "KeyboardInterrupt"]
    assert [one["shards"] for one in tries] == [1, 1]
    assert [one for one in tries if one["wrong"]] == []


def test_a_cache_that_may_only_be_read_serves_everything_but_a_build_that_has_something_to_add(
    fast_folder: Path,
) -> None:
    answers = run("read-only", fast_folder)
    assert {(one["where"], one["what"]): one["kind"] for one in answers if one["what"] == "build of more"}.keys() >= {
        ("user", "build of more")
    }
    for one in answers:
        match one["what"]:
            case "build of more":
                assert one["kind"] == "ReadOnlyError"
                assert "cannot be written" in one["text"]
            case "build of nothing":
                assert set(one["text"].values()) == {0}
            case "reading" | "verify":
                assert (one["kind"], one["text"]) == ("done", [])
            case "ls":
                assert (one["kind"], one["text"]) == ("done", 1)
            case "names":
                assert one["text"], "something was written"
