"""What the summaries of trainings and reports say."""

from __future__ import annotations

import pytest
from distil_cache.commands.show.train import show_report, show_train


def test_a_training_says_how_many_images_it_learned_from_and_how_the_validation_ended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torch")
    show_train(
        {
            "run": "r",
            "samples": {"train": 1029, "val": 3},
            "epochs": 1,
            "val": {"ap": 0.75, "acc": 0.5, "bce": 0.7},
        }
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["training", "images", "1,029"] in rows
    assert ["validation", "images", "3"] in rows
    assert ["best", "validation", "AP", "75.0", "%"] in rows


def test_a_report_gives_its_verdict_what_it_lacks_and_runs_without_an_evaluation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    verdict = {
        "answers": [{"question": "Seen generators", "answer": "a is best", "numbers": "By 4 points."}],
        "missing": ["One seed."],
    }
    notes = ["Run b has no evaluation."]
    show_report({"verdict": verdict, "runs": [{}, {}], "html": "out/report.html", "notes": notes})
    assert capsys.readouterr().out.splitlines() == [
        "Seen generators: a is best. By 4 points.",
        "Missing for a claim: One seed.",
        "Note: Run b has no evaluation.",
        "Report on 2 runs: out/report.html",
    ]
