"""Summaries of ``train``, ``evaluate``, ``report`` and ``checkpoint``."""

from __future__ import annotations

from rich.text import Text

from ...train.config import NO_BACKBONE
from .build import show_counts
from .format import Result, cell, count, new_console, new_table, percent, percent_with_interval, show_next, show_profile

_SPLITS = {"train": "training", "val": "validation"}
_ELSEWHERE = {"run", "validation", "profile", "next"}
_MEASURES = {"ap": "AP", "acc": "accuracy", "bce": "BCE"}


def show_train(result: Result) -> None:
    """Print the results of a training: images, what validated, and the best epoch."""
    console = new_console()
    show_profile(console, result.get("profile"))
    table = new_table(f"Run {result['run']}", ["", "value"])
    for split, number in (result.get("samples") or {}).items():
        table.add_row(f"{_SPLITS.get(split, split)} images", cell(number))
    if result.get("validation"):
        validated = (result.get("samples") or {}).get("val")
        table.add_row("validated on", Text(result["validation"] if validated else "nothing: no image is held out"))
    for name, value in result.items():
        if name not in _ELSEWHERE and not isinstance(value, (dict, list)):
            table.add_row(name.replace("_", " "), cell(value))
    for name, value in (result.get("val") or {}).items():
        shown = cell(value) if name == "bce" or value is None else f"{percent(value)} %"
        table.add_row(f"best validation {_MEASURES.get(name, name)}", shown)
    console.print(table)
    for note in _resume_notes(result):
        console.print(Text(f"Note: {note}"))
    show_next(console, result)


def show_plans(result: Result) -> None:
    """Print what a training would do, of a sweep the first one in full and the folders of all."""
    console = new_console()
    show_profile(console, result["profile"])
    first, *others = result["runs"]
    builds = ", ".join(f"{build['dataset']} (build {build['build']})" for build in first["builds"])
    console.print(Text(f"Trains on {builds}, features {', '.join(first['features'])}."), soft_wrap=True)
    show_counts(console, first["counts"])
    validated = first["validation"] if first["samples"]["val"] else "nothing: no image is held out"
    console.print(Text(f"Validates on {validated}."))
    if left := first["samples"].get("left_out"):
        console.print(f"{count(left, 'image')} left out, which another dataset reserves.", highlight=False)
    settings = ((name, value) for name, value in first["settings"].items() if value != [] and value is not False)
    table = new_table("Settings", ["", "value", "chosen by"])
    filled = (result["profile"] or {}).get("settings", {})
    for name, value in settings:
        option = name.replace("_", "-")
        by = "you" if name in result["given"] else "the run" if name in result["kept"] else "default"
        by = "the profile" if by == "default" and option in filled else by
        table.add_row(option, Text(_listed(value)), by)
    console.print(table)
    side = f"{first['train_size']} pixels"
    if first["settings"]["backbone"] == NO_BACKBONE:
        side = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in first["input"].items())
    console.print(Text(f"The student's input has {side}; it starts from {first['initial_weights']}."))
    if first["teacher"]:
        console.print(Text(f"Teacher: {first['teacher']}."))
    per_epoch = count(first["steps_per_epoch"], "step")
    epochs = count(first["settings"]["epochs"], "epoch")
    console.print(f"At most {epochs} of {per_epoch}: {count(first['steps'], 'step')}.", highlight=False)
    for sentence in dict.fromkeys(sentence for one in result["runs"] for sentence in one["absent"]):
        console.print(Text(f"Note: {sentence}", style="yellow"), soft_wrap=True)
    for one in result["runs"]:
        console.print(Text(f"{one['run']}: {one['state']}."), soft_wrap=True)
    if others:
        console.print(f"{len(result['runs']):,} runs; the figures above are those of the first.", highlight=False)
    show_next(console, result)


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _resume_notes(result: Result) -> list[str]:
    """Say what a training had to do or assume to go on, a sentence each."""
    from ...train.engine.resume import restarted_note, unchecked_note

    restarted, unchecked = (result.get(name) or () for name in ("restarted_epochs", "unchecked_epochs"))
    return [*map(restarted_note, restarted), *map(unchecked_note, unchecked)]


def show_sweep(result: Result) -> None:
    """Print a table with one row per run of a sweep."""
    console = new_console()
    settings = list(result["runs"][0]["settings"])
    columns = [*settings, "epochs", "best epoch", "loss", "val AP", "val accuracy", "seconds"]
    table = new_table(f"Sweep {result['folder']}", columns)
    for run in result["runs"]:
        measures = (run["epochs"], run["best_epoch"], run["last_loss"], run["val"]["ap"], run["val"]["acc"])
        shown = (cell(value) for value in (*measures, round(run["seconds"], 1)))
        table.add_row(*(str(run["settings"][name]) for name in settings), *shown)
    console.print(table)
    for run in result["runs"]:
        for note in _resume_notes(run):
            console.print(Text(f"Note: {run['name']}: {note}"))
    show_next(console, result)


def show_evaluation(result: Result) -> None:
    """Print the metrics of an evaluation per generator, in percent with 95 % intervals."""
    console = new_console()
    summary = result["summary"]
    threshold = summary["threshold"]
    if result.get("defaults"):
        own = ", ".join(f"{name} {value}" for name, value in result["defaults"].items())
        console.print(Text(f"As the run was trained: {own}."), soft_wrap=True)
    validated = [] if threshold is None else [f"at {threshold:.3f}"]
    table = new_table(
        f"{result['dataset']}, split {result['split']}, {result['transform']}: accuracy and AP in percent (95 %)",
        ["generator", "real", "generated", "at 0.5", *validated, "AP"],
    )
    for row in summary["rows"]:
        counts = (f"{row['real']:,}", f"{row['fake']:,}")
        measures = ["at_half", *(["at_threshold"] if validated else []), "ap"]
        table.add_row(Text(row["generator"]), *counts, *(percent_with_interval(row[name]) for name in measures))
    console.print(table)
    if note := summary["clusters"]["note"]:
        console.print(Text(f"Note: {note}."), soft_wrap=True)
    if threshold is None:
        console.print("The run has no validated threshold, so accuracy is given at 0.5 alone.")
    else:
        chosen = f"{threshold:.3f} is the threshold that the run's validation chose, on {summary['validated_on']}."
        console.print(Text(chosen), soft_wrap=True)
    if not (result["counts"]["real"] and result["counts"]["fake"]):
        one, other = ("generated", "real") if result["counts"]["fake"] else ("real", "generated")
        console.print(
            Text(
                f"Only {one} images: accuracy is the share recognised as {one}. AP and AUC need {other} images as well."
            )
        )
    for note in result.get("notes") or ():
        console.print(Text(f"Note: {note}."))
    show_next(console, result)


def show_checkpoint(result: Result) -> None:
    """Print what was imported or exported."""
    console = new_console()
    table = new_table("Checkpoint", ["", "value"])
    for name, value in result.items():
        if name != "next":
            table.add_row(name, cell(value))
    console.print(table)
    show_next(console, result)


def show_report(result: Result) -> None:
    """Print the verdict, what is missing for a claim, the notes, and where the report was written."""
    console = new_console()
    for one in result.get("evaluated", ()):
        console.print(Text(f"Evaluated {one['run']} on {one['dataset']}, split {one['split']}."), soft_wrap=True)
    verdict = result["verdict"]
    for answer in verdict["answers"]:
        head = f"{answer['question']}: {answer['answer']}. "
        console.print(Text.assemble((head, "bold"), answer["numbers"]), soft_wrap=True)
    for sentence in verdict["missing"]:
        console.print(Text.assemble(("Missing for a claim: ", "bold"), sentence), soft_wrap=True)
    for note in result["notes"]:
        console.print(Text(f"Note: {note}"), soft_wrap=True)
    console.print(Text(f"Report on {count(len(result['runs']), 'run')}: {result['html']}"), soft_wrap=True)
    show_next(console, result)
