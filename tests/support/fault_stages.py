"""Commands of stage two, killed: train, sweep, evaluate, report, predict, export, imports. Each is run again after a kill.

A command runs as the command line in a child of its own. The child dies (SIGKILL) before one of its writing calls, half way
through a write, or at a random moment; after every second chosen kill the power fails, too. Or the disk is full from one of
its calls on, or too small from the beginning. Then the same command runs undisturbed, and what it made must equal, to the bit, what it
makes without a kill.

As a program it prints one JSON line for each disturbance:
``python fault_stages.py FOLDER STAGES PER_STAGE RANDOM FULL SEED DISKS``.
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

from fault_disk import small_disk
from fault_errors import copied, run_command
from fault_injection import ACTS, Watch, in_child, lose_unflushed
from fault_scenarios import TRAIN, cache_to_train_from, run_made

OWN = ("--cache", "cache", "--dataset", "pictures")
DIGITS = re.compile(r"[0-9a-f]{8,}|\d{3,}")


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


def _exported(work: Path) -> Any:
    return hashlib.sha256((work / "out.safetensors").read_bytes()).hexdigest()


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
    "export": Stage(
        ("cache", "export", "cache", "--dataset", "pictures", "--out", "exported", "--json"), (), _files("exported"), "exported"
    ),
    "import": Stage(
        ("cache", "import", "imported", "../beside/loose", "--dataset", "d", "--kind", "distildire", "--json"),
        (), _imported,
    ),
    "checkpoint import": Stage(
        ("checkpoint", "import", "../beside/theirs.pth", "--run", "theirs", "--method", "distildire", "--json"),
        (), _run_imported, "theirs/config.json",
    ),
    "checkpoint export": Stage(
        ("checkpoint", "export", "theirs", "out.safetensors", "--json"), ("checkpoint import",), _exported, "out.safetensors"
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
BESIDE = ("predict", "import", "checkpoint import", "checkpoint export")


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
        from distil_cache.train.students.pixels import PixelStudent

        torch.manual_seed(0)
        student = PixelStudent.of("resnet50", 6)
        state = {k: v for k, v in student.state_dict().items() if not k.startswith("projection.")}
        torch.save({"model": state, "optimizer": {}, "total_steps": 0}, start / "beside" / "theirs.pth")


def disturbed(
    work: Path, arguments: Sequence[str], act: str, at: str | None, trace: Path | None = None
) -> dict[str, Any]:
    """Run a command in this child with ``act`` at an event; return its end and its writing calls: event, call, file."""
    watch = Watch(work, at=at, act=ACTS[act], trace=trace)
    calls: list[tuple[str, str, str]] = []
    due = watch.due

    def noted(relative: str, call: str) -> bool:
        is_due = due(relative, call)
        calls.append((f"{watch.stage}:{watch.counts[watch.stage]}", call, relative))
        return is_due

    watch.due = _from_then_on(noted) if act == "full" else noted  # type: ignore[method-assign]
    done = run_command(work, arguments)
    return {"code": done["code"], "said": done["said"], "calls": calls}


def _from_then_on(due: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    came = [False]

    def lasting(relative: str, call: str) -> bool:
        came[0] = due(relative, call) or came[0]
        return came[0] and call not in ("unlink", "rmdir", "fsync", "utime", "rename", "replace")

    return lasting


def what_of(call: str, relative: str) -> str:
    """Describe a writing call by its kind and file, the same in every run."""
    parts = [part.removeprefix(".tmp-") for part in Path(relative).parts if part not in ("work", "cache")]
    return f"{call} {DIGITS.sub('#', '/'.join(parts[-2:]))}"


def campaign(
    folder: Path, names: Sequence[str], per_stage: int, at_random: int, full: int, seed: int, disks: int = 0
) -> Iterator[dict[str, Any]]:
    """Disturb each stage at events spread over its run, at random moments, with a full disk, and on a disk that is too small.

    After every second chosen kill the power fails, too. Events of the same kind and file count as one when they are
    drawn, so that a file that is written in many pieces does not take all kills.
    """
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
        grown = _size(place / "whole") - _size(start)
        kinds: dict[str, list[str]] = {}
        for at, call, relative in whole["calls"]:
            kinds.setdefault(what_of(call, relative), []).append(at)
        attack = Attack(stage, start, place, expected)
        for act, count in (("kill", per_stage), ("full", full)):
            for number, what in enumerate(_drawn(draw, list(kinds), count)):
                power = act == "kill" and number % 2 == 1
                result = attack.at_event(act, draw.choice(kinds[what]), power=power)
                yield {"stage": name, "act": act, "what": what, "power": power, **result}
        for _ in range(at_random):
            result = attack.after(draw.uniform(0, seconds))
            yield {"stage": name, "act": "kill", "what": "", "power": False, **result}
        for number in range(disks):
            result = attack.on_a_small_disk(_size(start) + grown * number // disks)
            yield {"stage": name, "act": "disk", "what": f"{number} of {disks} of the room", "power": False, **result}
        shutil.rmtree(place)


def _drawn(draw: random.Random, kinds: list[str], count: int) -> list[str]:
    """Draw kinds of events, each once before any a second time."""
    found: list[str] = []
    while len(found) < count:
        found += draw.sample(kinds, min(len(kinds), count - len(found)))
    return found


def _size(folder: Path) -> int:
    """Return the room that a folder takes on a disk."""
    return sum(-(-path.stat().st_size // 4096) * 4096 or 4096 for path in folder.rglob("*") if not path.is_symlink())


@dataclass(frozen=True)
class Attack:
    """Disturbs one stage, and looks at what the next run makes of it."""

    stage: Stage
    start: Path
    place: Path
    expected: Any

    def at_event(self, act: str, at: str, *, power: bool = False) -> dict[str, Any]:
        """Disturb it at an event; with ``power``, names and contents that nobody had flushed are lost after it."""
        work, trace = copied(self.start, self.place / "disturbed") / "work", self.place / "trace"
        arguments = self.stage.arguments
        number, done = in_child(lambda: disturbed(work, arguments, act, at, trace if power else None))
        if power:
            lose_unflushed(work, trace)
            trace.unlink()
        return self._judged(work, number, done)

    def after(self, seconds: float) -> dict[str, Any]:
        """Kill it at a moment."""
        work = copied(self.start, self.place / "disturbed") / "work"
        number = _killed_after(lambda: disturbed(work, self.stage.arguments, "kill", None), seconds)
        return self._judged(work, number, None)

    def on_a_small_disk(self, size: int) -> dict[str, Any]:
        """Run it on a file system of so many bytes, which is larger the next time."""
        with small_disk(self.place / "disk", size + (1 << 20)) as remount:
            work = copied(self.start, self.place / "disk" / "disturbed") / "work"
            remount(f"size={max(size, _size(self.place / 'disk')) >> 10}k")
            done = in_child(lambda: run_command(work, self.stage.arguments))[1]
            remount("size=1g")
            return self._judged(work, 0, done)

    def _judged(self, work: Path, number: int, done: dict[str, Any] | None) -> dict[str, Any]:
        """Say what is wrong after a disturbance and after the next run, which nothing disturbs."""
        wrong: list[str] = []
        if done is not None and done["code"] != 0:
            said = done["said"].strip().splitlines()
            if "Traceback" in done["said"]:
                wrong.append("traceback: " + said[-1])
            elif sum(line.startswith("distil-cache: ") for line in said) != 1:
                wrong.append(f"no sentence: {said[-3:]}")
        again = in_child(lambda: run_command(work, self.stage.arguments))[1]
        complete = self.stage.refuses_more and in_child(lambda: (work / self.stage.refuses_more).exists())[1]
        if again["code"] != 0 and not complete:
            wrong.append(f"the next run ends with {again['code']}: {again['said'].strip()[-300:]}")
        else:
            found = in_child(lambda: self.stage.made(work))[1]
            if found != self.expected:
                wrong.append(f"differs: {_where(found, self.expected)}")
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
