"""Summary of ``demo``."""

from __future__ import annotations

from .format import Result, new_console, new_table, size_of


def show_demo(result: Result) -> None:
    """Print the demo's scores, DIRE statistics and times, and where its report was written."""
    console = new_console()
    images, calls = result["images"], result["adm_calls"]
    for row in result["test_sets"]:
        mark = "*" if row["seen_in_training"] else ""
        scores = new_table(
            f"{row['title']}{mark}, {row['real']} + {row['fake']} images", ["in percent", "accuracy", "AP (95 %)"]
        )
        scores.add_row("smoothness and saturation only", *_accuracy_and_ap(row["baseline"]))
        for run, measures in row["runs"].items():
            scores.add_row(f"student {run}", *_accuracy_and_ap(measures))
        console.print(scores)
        console.print()
    dire = new_table(
        "Mean DIRE in percent of the 8-bit range (95 % interval)", ["images", *(d["path"] for d in result["dire"])]
    )
    for of_paths in zip(*(d["classes"] for d in result["dire"]), strict=True):
        dire.add_row(of_paths[0]["images"], *map(_percent_and_interval, of_paths))
    stages = new_table("Seconds", ["stage", "wall", "CPU"])
    for row in [*result["stages"], {"stage": "all", "seconds": result["seconds"], "cpu_seconds": None}]:
        cpu = row["cpu_seconds"]
        stages.add_row(row["stage"], f"{row['seconds']:.1f}", "" if cpu is None else f"{cpu:.1f}")
    for table in (dire, stages):
        console.print(table)
        console.print()
    lines = [
        f"{images['train']:,} training and {images['test']:,} test images"
        f" {'made' if images['made'] else 'reused'}; {calls['images']:,} ADM calls to generate them,"
        f" {calls['features']:,} for {result['features']['computed']:,} feature rows"
        f" ({result['features']['reused']:,} reused), {size_of(result['cache_bytes'])} of cache.",
        f"Second build: {calls['again']:,} ADM calls, {result['again']['computed']:,} rows computed,"
        f" {result['again']['reused']:,} reused, {result['again']['decoded']:,} images decoded.",
        f"File metadata alone: AUC {result['metadata_auc']:.2f} (0.50 is chance).",
        *(study["conclusion"] for study in result["dire"]),
        f"Peak memory: {size_of(result['peak_memory_bytes'])}.",
    ]
    for line in lines:
        console.print(line, highlight=False)
    console.print()
    console.print(what_it_shows(result["test_sets"]), highlight=False)
    console.print(f"Report: {result['report']}", style="bold", highlight=False, soft_wrap=True)
    console.print(f"Next, your own images: {result['next']}", style="bold", highlight=False, soft_wrap=True)


def what_it_shows(test_sets: list[Result]) -> str:
    """Say in two sentences what the scores of a demo show, and what they do not."""
    held_out = next(row for row in test_sets if not row["seen_in_training"])
    reached = " and ".join(f"{100 * run['average_precision']:.0f} %" for run in held_out["runs"].values())
    alone = f"{100 * held_out['baseline']['average_precision']:.0f} %"
    return (
        f"On {held_out['title']} the students reach an AP of {reached}, smoothness and saturation alone {alone}: features "
        "that were computed once serve every training and every test. "
        f"On {held_out['real'] + held_out['fake']} small images differences of a few points say nothing, and a small ADM "
        "says nothing about the paper's figures."
    )


def _accuracy_and_ap(measures: Result) -> tuple[str, str]:
    low, high = measures["average_precision_interval"]
    accuracy, precision = 100 * measures["accuracy"], 100 * measures["average_precision"]
    return f"{accuracy:.1f}", f"{precision:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def _percent_and_interval(row: Result) -> str:
    low, high = row["interval"]
    return f"{100 * row['mean']:.2f} ({100 * low:.2f} to {100 * high:.2f})"
