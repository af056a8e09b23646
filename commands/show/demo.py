"""Summary of ``demo``."""

from __future__ import annotations

from .format import Result, new_console, new_table, size_of


def show_demo(result: Result) -> None:
    """Print the demo's scores, DIRE statistics and times, and where its report was written."""
    console = new_console()
    images, calls = result["images"], result["adm_calls"]
    runs = list(result["test_sets"][0]["runs"])
    scores = new_table(
        "Accuracy / AP in percent (95 % interval of the AP, resampled by scene)",
        ["test set", "images", "smoothness and saturation only", *(f"student {run}" for run in runs)],
    )
    for row in result["test_sets"]:
        cells = [row["baseline"], *(row["runs"][run] for run in runs)]
        mark = "*" if row["seen_in_training"] else ""
        scores.add_row(row["title"] + mark, f"{row['real']} + {row['fake']}", *map(_accuracy_and_ap, cells))
    dire = new_table(
        "Mean DIRE in percent of the 8-bit range (95 % interval)", ["images", *(d["path"] for d in result["dire"])]
    )
    for of_paths in zip(*(d["classes"] for d in result["dire"]), strict=True):
        dire.add_row(of_paths[0]["images"], *map(_percent_and_interval, of_paths))
    stages = new_table("Seconds", ["stage", "wall", "CPU"])
    for row in [*result["stages"], {"stage": "all", "seconds": result["seconds"], "cpu_seconds": None}]:
        cpu = row["cpu_seconds"]
        stages.add_row(row["stage"], f"{row['seconds']:.1f}", "" if cpu is None else f"{cpu:.1f}")
    for table in (scores, dire, stages):
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
    console.print(f"Report: {result['report']}", style="bold", highlight=False, soft_wrap=True)


def _accuracy_and_ap(measures: Result) -> str:
    low, high = measures["average_precision_interval"]
    accuracy, precision = 100 * measures["accuracy"], 100 * measures["average_precision"]
    return f"{accuracy:.1f} / {precision:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def _percent_and_interval(row: Result) -> str:
    low, high = row["interval"]
    return f"{100 * row['mean']:.2f} ({100 * low:.2f} to {100 * high:.2f})"
