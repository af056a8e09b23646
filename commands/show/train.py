"""Summaries of ``train``, ``evaluate``, ``report`` and ``checkpoint``."""

from __future__ import annotations

from rich.text import Text

from .format import Result, cell, count, new_console, new_table

_SPLITS = {"train": "training", "val": "validation"}
_MEASURES = {"ap": "AP", "acc": "accuracy", "bce": "BCE"}


def show_train(result: Result) -> None:
    """Print the results of a training."""
    console = new_console()
    table = new_table(f"Run {result['run']}", ["", "value"])
    for split, number in (result.get("samples") or {}).items():
        table.add_row(f"{_SPLITS.get(split, split)} images", cell(number))
    for name, value in result.items():
        if name != "run" and not isinstance(value, (dict, list)):
            table.add_row(name.replace("_", " "), cell(value))
    for name, value in (result.get("val") or {}).items():
        table.add_row(f"validation {_MEASURES.get(name, name)}", cell(value))
    console.print(table)
    for note in _resume_notes(result):
        console.print(Text(f"Note: {note}"))


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
    console.print(
        f"Compare the runs with: distil-cache report {result['folder']} --out report", highlight=False, soft_wrap=True
    )


def show_evaluation(result: Result) -> None:
    """Print the metrics of an evaluation per generator."""
    console = new_console()
    table = new_table(
        f"{result['dataset']}, split {result['split']}, {result['transform']}",
        ["generator", "real", "generated", "accuracy", "AP", "AUC"],
    )
    for row in [*result["generators"], {**result["mean"], "generator": "mean"}]:
        table.add_row(
            row["generator"],
            *(cell(row.get(name)) for name in ("real", "fake", "accuracy", "average_precision", "auc")),
        )
    console.print(table)
    for note in result.get("notes") or ():
        console.print(Text(f"Note: {note}."))


def show_checkpoint(result: Result) -> None:
    """Print what was imported or exported."""
    console = new_console()
    table = new_table("Checkpoint", ["", "value"])
    for name, value in result.items():
        table.add_row(name, cell(value))
    console.print(table)


def show_report(result: Result) -> None:
    """Print the verdict, what is missing for a claim, the notes, and where the report was written."""
    console = new_console()
    verdict = result["verdict"]
    for answer in verdict["answers"]:
        head = f"{answer['question']}: {answer['answer']}. "
        console.print(Text.assemble((head, "bold"), answer["numbers"]), soft_wrap=True)
    for sentence in verdict["missing"]:
        console.print(Text.assemble(("Missing for a claim: ", "bold"), sentence), soft_wrap=True)
    for note in result["notes"]:
        console.print(Text(f"Note: {note}"), soft_wrap=True)
    console.print(Text(f"Report on {count(len(result['runs']), 'run')}: {result['html']}"), soft_wrap=True)
