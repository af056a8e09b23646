"""Runs whose files are not what they should be: whatever reads them ends with a sentence, and none is waited for."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distil_cache.errors import DistilCacheError, UserError
from distil_cache.metrics.swap import Swap
from distil_cache.report.inputs.records import GALLERY
from distil_cache.report.inputs.runs import read_runs
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import run_evaluation
from distil_cache.train.runs.checkpoint import load_state
from distil_cache.train.runs.folder import RunFolder, RunRecord
from distil_cache.train.runs.forms import EvaluationForm, RunForm, Saved, State, SweepForm, read_evaluation
from distil_cache.train.students.pixels import PixelStudent
from distil_cache.train.sweep import _note
from pydantic import TypeAdapter, ValidationError
from run_damage import DAMAGES, VALUES, changed, files, outcome, places, prepare
from small_cache import make_cache, rows
from torch.optim import Adam


def resumed(run: Path) -> None:
    record = RunFolder(run).read()
    student = PixelStudent.of(record.config.backbone, 3 * len(record.method.inputs), record.teacher_channels)
    load_state(run / "checkpoints", student, Adam(student.parameters()))


READERS: dict[str, Callable[[Path], object]] = {
    "student": lambda run: RunFolder(run).load_student(),  # evaluate, predict, checkpoint export, --init-from
    "resume": resumed,
    "report": lambda run: read_runs([run]),
}
NEEDED = {
    "configuration": {"student", "resume", "report"},
    "record": {"student", "resume", "report"},
    "best": {"student", "resume"},
    "weights": {"resume"},
    "optimiser": {"resume"},
    "scores": {"resume"},
    "evaluation": {"report"},
    "journal": set(),
}
"""What reads each file of a run."""
OPTIONAL = {("record", "missing"): {"student"}, ("evaluation", "missing"): set()}
"""Where a file may be absent, what misses it all the same: without a state, a training begins with its first."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    cache, _ = make_cache(folder / "cache", [*rows("train", 12, {"adm": 12}), *rows("val", 4, {"adm": 4})])
    settings: dict[str, Any] = {"method": "cnndet", "initial_weights": "scratch", "schedule": "cosine"}
    config = TrainConfig.checked(dataset="pictures", backbone="small", epochs=2, batch_size=16, lr=1e-3, **settings)
    run_training(config, cache.root, folder / "run")
    run_evaluation(folder / "run", cache.root, "pictures", split="val")
    return folder / "run"


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """End the tests where something is waited for."""
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "work" / "run"))


def ends_with_a_sentence(read: Callable[[Path], object], run: Path) -> bool:
    """Say whether reading is refused with one sentence; any other error is that of the code under test."""
    said = ""
    try:
        read(run)
    except DistilCacheError as error:
        said = str(error)
    assert "\n" not in said
    return bool(said)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", NEEDED)
def test_a_damaged_file_is_a_sentence_for_whatever_needs_it_and_nothing_for_the_rest(
    copy: Path, file: str, damage: str
) -> None:
    found = files(copy)
    needed = set().union(*(NEEDED[name] for name, path in found.items() if path == found[file]))
    DAMAGES[damage](found[file])
    refused = {name for name, read in READERS.items() if ends_with_a_sentence(read, copy)}
    assert refused == OPTIONAL.get((file, damage), needed)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_evaluation_counts_as_none_and_is_made_again(copy: Path, damage: str) -> None:
    path = files(copy)["evaluation"]
    assert read_evaluation(path.parent)
    DAMAGES[damage](path)
    assert read_evaluation(path.parent) == {}


@pytest.mark.parametrize("file", ["configuration", "record"])
def test_a_wrong_value_in_any_place_of_a_run_is_a_sentence_or_does_not_matter(copy: Path, file: str) -> None:
    path = files(copy)[file]
    text, whole = path.read_text(), json.loads(path.read_text())
    refused = 0
    for number, place in enumerate(places(whole)):
        value = ... if number % 3 == 0 else VALUES[number % len(VALUES)]
        path.write_text(changed(text, place, value))
        refused += sum(ends_with_a_sentence(read, copy) for read in READERS.values())
    assert refused > 30


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc/passwd", "best/../../x.safetensors", "config.json", ""])
@pytest.mark.parametrize("field", ["weights", "optimiser", "best"])
def test_a_record_names_files_of_its_folder_alone(copy: Path, field: str, name: str) -> None:
    path = copy / "checkpoints" / "last.json"
    place = ("best", "weights", "name") if field == "best" else (field,)
    path.write_text(changed(path.read_text(), place, name))
    for read in READERS.values():
        with pytest.raises(UserError, match=r"last.json: is not the state of a training \(.*string should match"):
            read(copy)


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"missing", "an object", "a link out"}))
def test_a_sweep_whose_list_is_damaged_is_refused_and_so_is_its_report(run: Path, tmp_path: Path, damage: str) -> None:
    (tmp_path / "work").mkdir()
    path = tmp_path / "work" / "sweep.json"
    path.write_text(json.dumps({"runs": ["a"]}))
    DAMAGES[damage](path)
    with pytest.raises(UserError, match=r"sweep\.json: "):
        _note(path.parent, {"seed": ["0"]}, {})


@pytest.mark.slow
def test_the_commands_end_with_a_sentence_whatever_the_run_is(tmp_path: Path) -> None:
    start = prepare(tmp_path)
    found = files(start / "work" / "run")
    for command, file, damage in (
        ("resume", "configuration", "deep"),
        ("resume", "optimiser", "a pipe"),
        ("finished", "record", "NaN"),
        ("init-from", "best", "a link out"),
        ("evaluate", "record", "not UTF-8"),
        ("evaluate", "evaluation", "a pipe"),
        ("predict", "best", "huge"),
        ("predict", "record", "a link to a device"),
        ("checkpoint export", "best", "a pipe"),
        ("checkpoint import", "configuration", "a folder"),
        ("report", "record", "cut"),
        ("cache ls", "configuration", "missing"),
    ):
        where = found[file].relative_to(start / "work" / "run")
        ended = outcome(start, command, lambda run, d=damage, where=where: DAMAGES[d](run / where), tmp_path / "x")
        assert ended["wrong"] == "", (command, file, damage)
        fine = (command, file) in (("evaluate", "evaluation"), ("cache ls", "configuration"))
        assert (ended["code"] == 0) is fine, (command, file, damage, ended)


MANY: dict[str, Any] = {"lists": [1] * 3000, "texts": dict.fromkeys(map(str, range(3000)))}
WRONG: dict[str, tuple[Any, dict[str, Any]]] = {
    "runs of a sweep": (SweepForm, {"runs": MANY["lists"]}),
    "lines of a state": (State, {"history": MANY["lists"]}),
    "values of a line": (State, {"history": [dict.fromkeys(map(str, range(3000)), "x")]}),
    "drops of a state": (State, {"drops": ["x"] * 3000}),
    "files of a state": (Saved, {"sha256": MANY["texts"]}),
    "groups of parameters": (Saved, {"param_groups": MANY["lists"]}),
    "notes of an evaluation": (EvaluationForm, {"notes": MANY["lists"]}),
    "counts of an evaluation": (EvaluationForm, {"counts": dict.fromkeys(map(str, range(3000)), True)}),
    "measures of an evaluation": (EvaluationForm, {"metrics": dict.fromkeys(map(str, range(3000)), float("nan"))}),
    "generators of an evaluation": (EvaluationForm, {"generators": MANY["lists"]}),
    "groups of a run": (RunForm, {"groups": MANY["lists"]}),
    "data sets of a run": (RunForm, {"config": {"dataset": MANY["lists"]}}),
    "others of a run": (RunForm, {"others": MANY["lists"]}),
    "groups of a record": (RunRecord, {"groups": MANY["lists"]}),
    "specs of a record": (RunRecord, {"specs": MANY["texts"]}),
    "versions of a record": (RunRecord, {"versions": MANY["texts"]}),
    "others of a record": (RunRecord, {"others": MANY["lists"]}),
    "builds of a configuration": (TrainConfig, {"build": MANY["lists"]}),
    "histories of a swap test": (Swap, {"histories": MANY["lists"]}),
    "images of a gallery": (GALLERY, MANY["lists"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_of_many_wrong_items_in_a_record_the_first_is_enough_since_each_error_takes_memory(what: str) -> None:
    form, content = WRONG[what]
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(form).validate_json(json.dumps(content)) if isinstance(form, type) else form.validate_json(
            json.dumps(content)
        )
    assert caught.value.error_count() < 20  # with the fields that are missing
