"""What the commands print for people: progress on stderr, summaries on stdout."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

Result = dict[str, Any]


GO_ON = "Interrupted. What was finished is kept: run the same command again to go on."


class RichProgress:
    """Progress bars on stderr; where stderr is no terminal, one line a finished stage.

    interrupted : what to tell somebody who ends the program.
    """

    def __init__(self, interrupted: str = GO_ON) -> None:
        self._interrupted = interrupted
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> RichProgress:
        """Show the bars."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bars as they stand, and tell who interrupted the program what is kept."""
        self._bars.stop()
        if kind is KeyboardInterrupt:
            self._console.print(self._interrupted)

    def start(self, stage: str, total: int) -> None:
        """Begin a stage; one of the same name is begun anew."""
        if stage in self._tasks:
            self._bars.remove_task(self._tasks[stage])
        self._tasks[stage] = self._bars.add_task(stage, total=total, rate="", note="")

    def advance(self, stage: str, units: int) -> None:
        """Note that ``units`` more are done."""
        task = self._tasks[stage]
        self._bars.advance(task, units)
        shown = self._bars.tasks[self._bars.task_ids.index(task)]
        self._bars.update(task, rate=f"{shown.speed:,.0f}/s" if shown.speed else "")
        if shown.finished and not self._console.is_terminal:
            self._console.print(
                f"{stage}: {int(shown.completed):,} done in {shown.elapsed or 0:,.1f} s", highlight=False
            )

    def note(self, stage: str, text: str) -> None:
        """Show a text beside a stage."""
        self._bars.update(self._tasks[stage], note=text)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(Text(text), soft_wrap=True)


def show_build(result: Result) -> None:
    """Summarise a build, or the plan of one."""
    console = Console()
    plan = result["dry_run"]
    title = f"{result['dataset']} at revision {result['revision']}" if not plan else f"plan for {result['dataset']}"
    table = _table(title, ["feature", "missing" if plan else "computed", "reused", "size", "fingerprint"])
    for name, row in result["features"].items():
        new = row["missing"] if plan else row["computed"]
        size = ("at most " if plan else "") + size_of(row["bytes"])
        table.add_row(name, f"{new:,}", f"{row['reused']:,}", size, row["fingerprint"][:16])
    console.print(table)
    console.print(
        f"{result['samples']:,} samples; {result['rejected']:,} files rejected"
        f" ({result['label_conflicts']:,} because their bytes have both labels), {result['leaked']:,} left out of a split"
        " because test or val has the same bytes.",
        highlight=False,
    )
    if result["adm_calls"] == 0:
        console.print("Nothing to compute: 0 ADM calls, no image decoded." if not result["decoded"] else "0 ADM calls.")
    else:
        verb = "would make" if plan else "made"
        console.print(f"{verb} {result['adm_calls']:,} ADM calls (images x calls).", highlight=False)
    for note in result["notes"]:
        console.print(Text(f"Note: {note}"))
    if result["audit"] and result["audit"]["found"]:
        console.print(Text(f"Warning: {result['audit']['warning']}", style="yellow"), soft_wrap=True)
    show_rejects(console, result)
    if plan:
        show_estimate(console, result["estimate"])
    elif result["part"] and result["build"] is None:
        part = result["part"]
        console.print(
            f"Part {part['number']} of {part['of']} is done in {result['seconds']:,.1f} s; {part['shards_left']:,} shards of"
            " other parts are not there yet, so no build record was written. The part that ends last writes it, or the same"
            " command without --array.",
            highlight=False,
        )
    else:
        console.print(f"build {result['build']} in {result['seconds']:,.1f} s", highlight=False)


def show_estimate(console: Console, estimate: Result) -> None:
    """Say what a plan takes on the devices whose rate is known."""
    console.print(f"At most {size_of(estimate['bytes'])} before compression.", highlight=False)
    processes = estimate["processes"]
    for one in estimate["devices"]:
        if one["device_hours"] is None:
            continue
        shared = f", {_duration(one['hours'])} on {processes:,} of them" if processes > 1 else ""
        cost = "" if one["cost"] is None else f", cost {one['cost']:,.2f} at {estimate['price_per_hour']:,.2f} an hour"
        rate = (
            f"{one['adm_calls_per_second']:,.1f} ADM calls/s, {one['source']}"
            if one["adm_calls_per_second"]
            else one["source"]
        )
        console.print(
            Text(f"{one['device']}: {_duration(one['device_hours'])} of one device{shared}{cost} ({rate})."),
            soft_wrap=True,
        )
    if not estimate["devices"]:
        console.print(
            "No rate of this model is known, so there is no estimate of time. Measure it with --calibrate on a device that"
            " will do the work.",
            highlight=False,
        )


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"


def show_builds(result: Result) -> None:
    """Summarise a build, or several that one command ran."""
    for one in result.get("builds", [result]):
        show_build(one)


def show_rejects(console: Console, result: Result) -> None:
    """Show the first files that a build or an import set aside, and where the others are listed."""
    for reject in result["rejects"][:5]:
        console.print(Text(f"  rejected {reject['path']}: {reject['reason']} ({reject['detail']})", style="yellow"))
    if len(result["rejects"]) > 5:
        console.print(
            f"  and {len(result['rejects']) - 5:,} more; all of them: {result['rejects_file']}", highlight=False
        )


def show_train(result: Result) -> None:
    """Summarise a training."""
    console = Console()
    table = _table(f"run {result['run']}", ["", "value"])
    for name, value in result.items():
        if name != "run" and not isinstance(value, (dict, list)):
            table.add_row(name.replace("_", " "), _plain(value))
    console.print(table)
    for note in _resume_notes(result):
        console.print(Text(f"Note: {note}"))


def _resume_notes(result: Result) -> list[str]:
    """Say what a training had to do or assume to go on, a sentence each."""
    from .train.resume import restarted_note, unchecked_note

    restarted, unchecked = (result.get(name) or () for name in ("restarted_epochs", "unchecked_epochs"))
    return [*map(restarted_note, restarted), *map(unchecked_note, unchecked)]


def show_sweep(result: Result) -> None:
    """Show a row for each run of a sweep."""
    console = Console()
    settings = list(result["runs"][0]["settings"])
    columns = [*settings, "epochs", "best epoch", "loss", "val AP", "val accuracy", "seconds"]
    table = _table(f"sweep {result['folder']}", columns)
    for run in result["runs"]:
        measures = (run["epochs"], run["best_epoch"], run["last_loss"], run["val"]["ap"], run["val"]["acc"])
        shown = (_plain(value) for value in (*measures, round(run["seconds"], 1)))
        table.add_row(*(str(run["settings"][name]) for name in settings), *shown)
    console.print(table)
    for run in result["runs"]:
        for note in _resume_notes(run):
            console.print(Text(f"Note: {run['name']}: {note}"))
    console.print(
        f"report them with: distil-cache report {result['folder']} --out report", highlight=False, soft_wrap=True
    )


def show_evaluation(result: Result) -> None:
    """Show accuracy and AP per generator."""
    console = Console()
    table = _table(
        f"{result['dataset']}, split {result['split']}, {result['transform']}",
        ["generator", "real", "fake", "accuracy", "AP", "AUC"],
    )
    for row in [*result["generators"], {**result["mean"], "generator": "mean"}]:
        table.add_row(
            row["generator"],
            *(_plain(row.get(name)) for name in ("real", "fake", "accuracy", "average_precision", "auc")),
        )
    console.print(table)
    for note in result.get("notes") or ():
        console.print(Text(f"Note: {note}."))


def show_checkpoint(result: Result) -> None:
    """Say what was imported or exported."""
    console = Console()
    table = _table("checkpoint", ["", "value"])
    for name, value in result.items():
        table.add_row(name, _plain(value))
    console.print(table)


def show_report(result: Result) -> None:
    """Say where the report is."""
    Console().print(f"{len(result['runs'])} runs compared: {result['html']}", highlight=False, soft_wrap=True)


def show_demo(result: Result) -> None:
    """Say what the demo did, what came out of it, and where its report is."""
    console = Console()
    images, calls = result["images"], result["adm_calls"]
    runs = list(result["test_sets"][0]["runs"])
    scores = _table(
        "Accuracy / AP in percent, 95 % interval of the AP over scenes",
        ["test set", "images", "smoothness and saturation only", *(f"student {run}" for run in runs)],
    )
    for row in result["test_sets"]:
        cells = [row["baseline"], *(row["runs"][run] for run in runs)]
        mark = "*" if row["seen_in_training"] else ""
        scores.add_row(row["title"] + mark, f"{row['real']} + {row['fake']}", *map(_accuracy_and_ap, cells))
    dire = _table(
        "Mean DIRE in percent of the grey range, 95 % interval", ["images", *(d["path"] for d in result["dire"])]
    )
    for of_paths in zip(*(d["classes"] for d in result["dire"]), strict=True):
        dire.add_row(of_paths[0]["images"], *map(_percent_and_interval, of_paths))
    stages = _table("Seconds", ["stage", "wall", "CPU"])
    for row in [*result["stages"], {"stage": "all", "seconds": result["seconds"], "cpu_seconds": None}]:
        cpu = row["cpu_seconds"]
        stages.add_row(row["stage"], f"{row['seconds']:.1f}", "" if cpu is None else f"{cpu:.1f}")
    for table in (scores, dire, stages):
        console.print(table)
        console.print()
    lines = [
        f"{images['train']:,} training and {images['test']:,} test images"
        f" {'made' if images['made'] else 'found as they were'}; {calls['images']:,} ADM calls for making them,"
        f" {calls['features']:,} for {result['features']['computed']:,} feature rows"
        f" ({result['features']['reused']:,} reused), {size_of(result['cache_bytes'])} of cache.",
        f"Built again: {calls['again']:,} ADM calls, {result['again']['computed']:,} rows computed,"
        f" {result['again']['reused']:,} reused, {result['again']['decoded']:,} images decoded.",
        f"File metadata alone: AUC {result['metadata_auc']:.2f} (0.50 is chance).",
        *(study["verdict"].rpartition("\n")[2] for study in result["dire"]),
        f"At most {size_of(result['peak_memory_bytes'])} of memory.",
    ]
    for line in lines:
        console.print(line, highlight=False)
    console.print(f"report: {result['report']}", style="bold", highlight=False, soft_wrap=True)


def size_of(count: float) -> str:
    """Return a number of bytes in the largest unit that keeps it above 1."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _accuracy_and_ap(measures: Result) -> str:
    low, high = measures["average_precision_interval"]
    accuracy, precision = 100 * measures["accuracy"], 100 * measures["average_precision"]
    return f"{accuracy:.1f} / {precision:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def _percent_and_interval(row: Result) -> str:
    low, high = row["interval"]
    return f"{100 * row['mean']:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def _plain(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
