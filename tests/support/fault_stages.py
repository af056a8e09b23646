"""Commands of stage two, killed: train, sweep, evaluate, report, predict, export, imports. Each is run again after a kill.

A command runs as the command line in a child of its own. The child dies (SIGKILL) before one of its writing calls, half way
through a write, or at a random moment; or the disk is full from one of its calls on. Then the same command runs
undisturbed, and what it made must equal, to the bit, what it makes without a kill.

As a program it prints one JSON line for each disturbance: ``python fault_stages.py FOLDER STAGES PER_STAGE RANDOM FULL SEED``.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fault_errors import copied, run_command
from fault_injection import ACTS, Watch, in_child
from fault_scenarios import TRAIN, cache_to_train_from, run_made

OWN = ("--cache", "cache", "--dataset", "pictures")
DIGITS = re.compile(r"[0-9a-f]{8,}")


@dataclass(frozen=True)
class Stage:
    """A command: its arguments, what must be there before it, and what looks at what it made."""

    arguments: tuple[str, ...]
    before: tuple[str, ...]
    made: Callable[[Path], Any]
    refuses_more: str = ""
    """What a finished command has made, which it does not make again."""


def _evaluated(work: Path) -> Any:
    import pyarrow.parquet as pq

    (folder,) = (work / "run" / "evaluations").iterdir()
    info = json.loads((folder / "evaluation.json").read_text())
    return {
        "info": {name: value for name, value in info.items() if name not in ("run",)},
        "scores": pq.read_table(folder / "scores.parquet").to_pydict(),
        "names": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")),
    }


def _reported(work: Path) -> Any:
    content = json.loads((work / "out" / "report.json").read_text())
    content.pop("created")
    tables = {path.name: path.read_text() for path in (work / "out" / "tables").glob("*.csv")}
    return {"content": content, "tables": tables, "names": sorted(path.name for path in (work / "out").iterdir())}


def _swept(work: Path) -> Any:
    runs = {}
    for run in sorted(path.parent for path in (work / "sweep").glob("*/config.json")):
        (work / "one").mkdir()
        (work / "one" / "cache").symlink_to(work / "cache")
        (work / "one" / "run").symlink_to(run)
        runs[run.name] = run_made(work / "one")
        shutil.rmtree(work / "one")
    return {"runs": runs, "list": json.loads((work / "sweep" / "sweep.json").read_text())}


def _files(folder: str) -> Callable[[Path], Any]:
    def made(work: Path) -> Any:
        found = sorted(path for path in (work / folder).rglob("*") if path.is_file())
        return {
            path.relative_to(work).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in found
            if path.name != "README.md" and not path.name.startswith("training.lock")
        }

    return made


def _predicted(work: Path) -> Any:
    return [json.loads(line) for line in (work / "predictions.jsonl").read_text().splitlines()]


def _imported(work: Path) -> Any:
    from fault_checks import snapshot

    return snapshot(work / "imported")


def _run_imported(work: Path) -> Any:
    from safetensors.torch import load_file

    weights = load_file(work / "theirs" / "checkpoints" / "best.safetensors")
    record = json.loads((work / "theirs" / "config.json").read_text())
    return {
        "weights": {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in weights.items()},
        "method": record["config"]["method"],
        "imported": record["imported"]["sha256"],
    }


STAGES: dict[str, Stage] = {
    "train": Stage(TRAIN, (), run_made),
    "sweep": Stage(
        ("train", *OWN, "--run", "sweep", "--backbone", "small", "--epochs", "1", "--batch-size", "4", "--device", "cpu",
         "--sweep", "seed=0,1", "--json"),
        (), _swept,
    ),
    "evaluate": Stage(("evaluate", "run", *OWN, "--split", "val", "--device", "cpu", "--json"), ("train",), _evaluated),
    "report": Stage(("report", "run", "--out", "out", "--json"), ("train", "evaluate"), _reported),
    "predict": Stage(
        ("predict", "../beside/images", "--run", "cnn", "--out", "predictions.jsonl", "--device", "cpu"),
        ("cnndet",), _predicted,
    ),
    "export": Stage(("cache", "export", *OWN, "--out", "exported", "--json"), (), _files("exported"), "exported"),
    "import": Stage(
        ("cache", "import", "imported", "../beside/loose", "--dataset", "d", "--kind", "distildire", "--json"),
        (), _imported,
    ),
    "checkpoint import": Stage(
        ("checkpoint", "import", "../beside/theirs.pth", "--run", "theirs", "--method", "distildire", "--json"),
        (), _run_imported, "theirs/config.json",
    ),
}  # fmt: skip
PREPARING = {
    "cnndet": ("train", *OWN, "--run", "cnn", "--method", "cnndet", "--backbone", "small", "--epochs", "1",
               "--batch-size", "4", "--initial-weights", "scratch", "--schedule", "constant", "--device", "cpu", "--json"),
}  # fmt: skip
IMPORTS = (
    "distil_cache.train.sweep", "distil_cache.train.evaluation.evaluate", "distil_cache.report", "distil_cache.inference.predict",
    "distil_cache.inference.detector", "distil_cache.cache.export.webdataset", "distil_cache.pipeline.importing.importer",
    "distil_cache.train.runs.reference_checkpoint", "torch.utils.tensorboard",
)  # fmt: skip
BESIDE = ("predict", "import", "checkpoint import")


def prepare(name: str, folder: Path) -> Path:
    """Make the folder from which a stage starts: ``work``, and what it reads in ``beside``."""
    start = folder / "start"
    in_child(lambda: cache_to_train_from(start) and None)
    if name in BESIDE:
        program = (
            f"import fault_stages; from pathlib import Path; fault_stages.put_beside({name!r}, Path({str(start)!r}))"
        )
        subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, check=True)
    for step in STAGES[name].before:
        arguments = PREPARING.get(step) or STAGES[step].arguments
        done = in_child(lambda arguments=arguments: run_command(start / "work", arguments))[1]
        assert done["code"] == 0, done
    return start


def put_beside(name: str, start: Path) -> None:
    """Write the files that a stage reads."""
    from image_bytes import noise, saved

    if name == "import":
        from loose_files import write_distildire

        write_distildire(start / "beside" / "loose", {"train": 3, "test": 2})
    elif name == "predict":
        (start / "beside" / "images").mkdir()
        for number in range(6):
            (start / "beside" / "images" / f"{number}.png").write_bytes(saved(noise(40, 40, seed=number)))
    else:
        import torch
        from distil_cache.train.student import build_student

        torch.manual_seed(0)
        student = build_student("resnet50", 6)
        state = {k: v for k, v in student.state_dict().items() if not k.startswith("projection.")}
        torch.save({"model": state, "optimizer": {}, "total_steps": 0}, start / "beside" / "theirs.pth")


def disturbed(work: Path, arguments: Sequence[str], act: str, at: str | None) -> dict[str, Any]:
    """Run a command in this child with ``act`` at an event; return its end and the events of its writing calls."""
    watch = Watch(work, at=at, act=ACTS[act])
    if act == "full":
        watch.due = _from_then_on(watch.due)  # type: ignore[method-assign]
    done = run_command(work, arguments)
    return {"code": done["code"], "said": done["said"], "counts": dict(watch.counts)}


def _from_then_on(due: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    came = [False]

    def lasting(relative: str, call: str) -> bool:
        came[0] = due(relative, call) or came[0]
        return came[0] and call not in ("unlink", "rmdir", "fsync", "utime", "rename", "replace")

    return lasting


def campaign(
    folder: Path, names: Sequence[str], per_stage: int, at_random: int, full: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Disturb each stage at events spread over its run, at random moments, and with a full disk."""
    for module in IMPORTS:  # once, here, and not in every child
        importlib.import_module(module)
    draw = random.Random(seed)
    for name in names:
        stage, place = STAGES[name], folder / name.replace(" ", "-")
        start = prepare(name, place)
        work = copied(start, place / "whole") / "work"
        began = time.monotonic()
        whole = in_child(lambda work=work, stage=stage: disturbed(work, stage.arguments, "kill", None))[1]
        seconds = time.monotonic() - began
        assert whole["code"] == 0, whole
        expected = in_child(lambda work=work, stage=stage: stage.made(work))[1]
        events = [f"{kind}:{n}" for kind, count in whole["counts"].items() for n in range(1, count + 1)]
        for act, count in (("kill", per_stage), ("full", full)):
            for at in sorted(draw.sample(events, min(count, len(events))), key=events.index):
                yield {"stage": name, "act": act, "at": at, **_one(stage, start, place, expected, act, at, None)}
        for _ in range(at_random):
            after = draw.uniform(0, seconds)
            yield {"stage": name, "act": "kill", "at": "", **_one(stage, start, place, expected, "kill", None, after)}
        shutil.rmtree(place)


def _one(
    stage: Stage, start: Path, place: Path, expected: Any, act: str, at: str | None, after: float | None
) -> dict[str, Any]:
    work = copied(start, place / "disturbed") / "work"
    wrong: list[str] = []
    if after is None:
        number, done = in_child(lambda: disturbed(work, stage.arguments, act, at))
    else:
        number, done = _killed_after(lambda: disturbed(work, stage.arguments, act, None), after), None
    if done is not None and act == "full" and done["code"] != 0 and "Traceback" in done["said"]:
        wrong.append("traceback: " + done["said"].strip().splitlines()[-1])
    again = in_child(lambda: run_command(work, stage.arguments))[1]
    complete = stage.refuses_more and in_child(lambda: (work / stage.refuses_more).exists())[1]
    if again["code"] != 0 and not complete:
        wrong.append(f"the next run ends with {again['code']}: {again['said'].strip()[-300:]}")
    else:
        found = in_child(lambda: stage.made(work))[1]
        if found != expected:
            wrong.append(f"differs: {_where(found, expected)}")
    left = [path for path in work.rglob(".tmp-*") if not {"cache", "imported"} & set(path.relative_to(work).parts)]
    if left and again["code"] == 0:  # those of a cache are gc's to delete, after a while
        wrong.append(f"left over: {sorted(path.name for path in left)[:3]}")
    shutil.rmtree(work.parent)
    return {"killed": number == signal.SIGKILL, "ended": None if done is None else done["code"], "wrong": wrong}


def _where(found: Any, expected: Any, path: str = "") -> str:
    """Return the first place where two results differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted({*found, *expected}, key=str):
            if found.get(key) != expected.get(key):
                return _where(found.get(key), expected.get(key), f"{path}/{key}")
    return f"{path}: {str(found)[:150]} instead of {str(expected)[:150]}"


def _killed_after(work: Callable[[], Any], seconds: float) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def main() -> None:
    folder, names, *numbers = sys.argv[1:]
    for result in campaign(Path(folder), names.split(","), *map(int, numbers)):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
