"""Two commands that write one file or folder of results at once: it ends whole, and nothing of the two is mixed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from distil_cache.choices import FileForm
from distil_cache.demo.run import run_demo
from distil_cache.errors import UserError
from distil_cache.inference.explain import Explainer
from distil_cache.inference.prediction import opened
from distil_cache.progress import Silent
from distil_cache.report.inputs import runs
from distil_cache.report.output.files import put_files
from distil_cache.storage.locks import FolderLock, temporary_folder
from distil_cache.train.evaluation import evaluate
from distil_cache.train.runs.checkpoint import replace_text
from run_folders import rows as score_rows
from run_folders import write_evaluation, write_run

OWN_REPORT = {"report.json": '{"program": {"name": "distil-cache"}}'}


def test_evaluations_of_one_name_that_end_at_once_leave_one_of_them_whole(tmp_path: Path) -> None:
    def put(number: int) -> None:
        new = tmp_path / f"new-{number}"
        new.mkdir()
        for name in ("a", "b"):
            (new / name).write_text(str(number))
        evaluate._put(new, tmp_path / "evaluations" / "one")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(200)))
    assert len({path.read_text() for path in (tmp_path / "evaluations" / "one").iterdir()}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["evaluations"]


def test_an_evaluation_that_is_replaced_while_a_report_reads_it_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    write_evaluation(run, score_rows({"adm": 2.0}, seed=0))
    (target,) = (run / "evaluations").iterdir()
    other = write_run(tmp_path / "other")
    write_evaluation(other, score_rows({"adm": 2.0}, seed=1))
    (new,) = (other / "evaluations").iterdir()
    expected = runs.read_runs([other])[0].evaluations[0].scores
    table = runs.read_scores

    def swapped(*arguments: Any) -> Any:
        found = table(*arguments)
        if new.exists():
            evaluate._put(new, target)
        return found

    monkeypatch.setattr(runs, "read_scores", swapped)
    assert (runs.read_runs([run])[0].evaluations[0].scores == expected).all()


def test_reports_that_are_put_in_one_folder_at_once_leave_one_of_them_whole(tmp_path: Path) -> None:
    names = [f"{number}.txt" for number in range(30)]

    def put(text: str) -> None:
        own = {f"tables/{text}.csv": text, "tables/tables.json": json.dumps({"tables": [f"{text}.csv"]})}
        put_files(tmp_path / "report", {**dict.fromkeys(names, text), **own, **OWN_REPORT})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(put, [str(number) for number in range(24)]))
    texts = {(tmp_path / "report" / name).read_text() for name in names}
    assert len(texts) == 1
    (text,) = texts
    assert sorted(path.name for path in (tmp_path / "report" / "tables").iterdir()) == [f"{text}.csv", "tables.json"]
    assert not list((tmp_path / "report").glob(".tmp-*"))


def test_two_commands_that_write_one_file_of_results_do_not_mix_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    texts = [f"{number}" * 200_000 for number in range(10)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda text: replace_text(path, text), texts))
    assert path.read_text() in texts
    assert [one.name for one in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_predictions_that_another_command_is_writing_are_neither_cut_off_nor_mixed(
    tmp_path: Path, form: FileForm
) -> None:
    path = tmp_path / f"found.{form}"
    with opened(path, form) as first:
        print("one", file=first, flush=True)
        with pytest.raises(UserError, match="another command is writing it"), opened(path, form):
            pass
        print("two", file=first, flush=True)
    assert path.read_text() == "one\ntwo\n"
    with opened(path, form) as second:
        print("three", file=second)
    assert path.read_text() == "three\n"


def test_predictions_as_one_object_that_are_written_at_once_leave_one_of_them_whole(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    with opened(path, "json") as first:
        first.write("1" * 100_000)
        with opened(path, "json") as second:
            second.write("2")
        assert path.read_text() == "2"
    assert path.read_text() == "1" * 100_000


def test_a_folder_into_which_another_command_explains_is_refused(tmp_path: Path) -> None:
    first = Explainer(tmp_path / "shown")
    with pytest.raises(UserError, match="another command is writing to it"):
        Explainer(tmp_path / "shown")
    del first
    Explainer(tmp_path / "shown")


def test_a_second_demo_in_a_folder_is_refused(tmp_path: Path) -> None:
    with FolderLock(tmp_path, ""), pytest.raises(UserError, match="another demo is running there"):
        run_demo(tmp_path, Silent())
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_takes_predictions_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for text in ("one", "two"):
        with opened(tmp_path / "a.jsonl", "jsonl") as stream:
            print(text, file=stream)
        put_files(tmp_path / "report", {"report.md": text, **OWN_REPORT})
    Explainer(tmp_path / "shown")
    assert (tmp_path / "a.jsonl").read_text() == "two\n"
    assert (tmp_path / "report" / "report.md").read_text() == "two"


def test_a_temporary_folder_goes_with_its_block_and_those_of_killed_commands_with_the_next(tmp_path: Path) -> None:
    (tmp_path / ".tmp-x-killed" / "inner").mkdir(parents=True)
    (tmp_path / ".tmp-other").mkdir()
    with temporary_folder(tmp_path, ".tmp-x-") as first:
        assert not (tmp_path / ".tmp-x-killed").exists()
        with temporary_folder(tmp_path, ".tmp-x-") as second:
            assert first.is_dir()
            assert first != second
            (second / "file").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-other"]
