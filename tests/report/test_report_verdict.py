"""The verdict of a report: what its numbers show, ties told as ties, and what is missing for a claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from distil_cache.cli import app
from distil_cache.errors import UserError
from distil_cache.metrics.measures import Interval
from distil_cache.report import write_report
from distil_cache.report.differences import Difference, MeanSpread
from distil_cache.report.inputs.runs import Run
from distil_cache.report.verdict import SEEN, UNSEEN, Effect, Place, Standing, is_above, is_below
from distil_cache.report.verdict_words import distillation_answer, standing_answer
from run_folders import rows, write_evaluation, write_run
from typer.testing import CliRunner

SETTING = ("photos", "abcdef", "test", "crop", "")
RUN = Run("a-run", {"config": {}}, (), ())
SURE = Interval(0.8, 0.9)
MANY = {"reals": 120, "fakes": 120}


def difference(points: float, low: float, high: float, *, spread: float | None = None, seeds: int = 1) -> Difference:
    interval = Interval(low / 100, high / 100)
    return Difference(0.5, 0.5 + points / 100, points / 100, interval, spread and spread / 100, seeds)


def place(name: str, ap: float, behind: Difference | None = None, auc: Interval = SURE) -> Place:
    return Place(name, (RUN,), MeanSpread(ap, None), Interval(ap - 0.02, ap + 0.02), auc, behind, {})


def standing(*places: Place, group: str = UNSEEN) -> Standing:
    return Standing(SETTING, group, ("adm", "sd"), 250, 250, places)


def verdict_of(*runs: Path, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = write_report(list(runs), out)["verdict"]
    return found


def answer_to(verdict: dict[str, Any], question: str) -> dict[str, str]:
    return next(one for one in verdict["answers"] if one["question"] == question)


def test_a_lead_whose_interval_excludes_zero_is_called_best_with_its_size_and_bounds():
    answer = standing_answer(standing(place("kd", 0.9), place("plain", 0.86, difference(4, 1.2, 6.9))))

    assert answer.question == "Unseen generators"
    assert answer.answer == "kd is best, by 4.0 points of AP"
    assert "AP 90.0 (88.0 to 92.0 over images)" in answer.numbers
    assert "leads plain, the next, by 4.0 points (95 % interval +1.2 to +6.9; one seed in common" in answer.numbers
    assert "adm and sd; at least 250 images of each class" in answer.numbers


def test_a_lead_whose_interval_holds_zero_is_a_tie():
    places = [
        place("kd", 0.9),
        place("plain", 0.89, difference(1, -0.5, 2.4)),
        place("eps", 0.6, difference(30, 20, 40)),
    ]

    answer = standing_answer(standing(*places))

    assert answer.answer == "No single best: kd and plain tie, ahead of 1 more"
    assert "may be chance: the 95 % interval \N{MINUS SIGN}0.5 to +2.4 contains zero" in answer.numbers
    assert "best," not in answer.numbers


def test_a_lead_that_touches_zero_is_a_tie():
    assert not is_above(difference(1, 0, 2))
    assert not is_below(difference(-1, -2, 0))


def test_an_end_that_is_nearly_zero_is_not_rounded_to_it():
    answer = standing_answer(standing(place("kd", 0.9), place("plain", 0.88, difference(2, 0.03, 4))))

    assert "(95 % interval +0.03 to +4.00;" in answer.numbers


def test_a_lead_over_images_that_the_seeds_do_not_confirm_is_a_tie():
    unsteady = difference(4, 1.2, 6.9, spread=2.0, seeds=2)

    answer = standing_answer(standing(place("kd", 0.9), place("plain", 0.86, unsteady)))

    assert answer.answer == "No single best: kd and plain tie"
    assert "but the seeds do not: over 2 seeds \N{MINUS SIGN}14.0 to +22.0" in answer.numbers


def test_the_interval_over_seeds_is_students():
    # 4 +- 4.303 * 1 / sqrt(3)
    assert difference(4, 1, 7, spread=1.0, seeds=3).seed_interval == pytest.approx((0.01516, 0.06484), abs=1e-4)
    assert difference(4, 1, 7).seed_interval is None


def test_a_lead_that_images_and_seeds_each_allow_but_not_together_is_a_tie():
    narrow = difference(4, 0.5, 7.5, spread=1.5, seeds=3)
    assert narrow.seed_interval is not None
    assert narrow.seed_interval.low > 0

    answer = standing_answer(standing(place("kd", 0.9), place("plain", 0.86, narrow)))

    assert answer.answer == "No single best: kd and plain tie"
    assert "together the 95 % interval is \N{MINUS SIGN}1.1 to +9.1" in answer.numbers


def test_sides_without_a_common_seed_are_compared_over_the_seeds_of_each():
    sides = ((MeanSpread(0.8, 0.03), 3), (MeanSpread(0.9, 0.04), 4))
    one = Difference(0.8, 0.9, 0.1, Interval(0.05, 0.15), None, unpaired=sides)

    # Welch: sqrt(0.03^2 / 3 + 0.04^2 / 4) = 0.02646 with 4.96 degrees of freedom
    assert one.seed_interval == pytest.approx((0.1 - 2.577 * 0.02646, 0.1 + 2.577 * 0.02646), abs=1e-3)
    answer = standing_answer(standing(place("kd", 0.9), place("plain", 0.8, one)))
    assert "no seed in common; over the seeds of each" in answer.numbers


def test_runs_whose_seed_the_other_side_lacks_are_counted(tmp_path):
    runs = [write_run(tmp_path / f"kd{seed}", seed=seed) for seed in (0, 1, 2)]
    others = [write_run(tmp_path / f"eps{seed}", method="eps", seed=seed) for seed in (0, 1)]
    for number, run in enumerate([*runs, *others]):
        write_evaluation(run, rows({"adm-b": 1.0 + number / 10}, **MANY))

    content = write_report([*runs, *others], tmp_path / "out")

    found = content["comparisons"][0]["methods"][0]["mean"]["average_precision"]
    assert (found["seeds"], found["left_out"]) == (2, 1)
    assert found["total_interval"][0] < found["interval"][0]
    assert "over 2 seeds" in content["verdict"]["answers"][0]["numbers"]
    assert "1 run with other seeds left out" in content["verdict"]["answers"][0]["numbers"]


def test_runs_on_other_images_are_not_ranked():
    unpaired = Difference(0.8, 0.9, 0.1, None, None, 1)

    answer = standing_answer(standing(place("kd", 0.9), place("plain", 0.8, unpaired)))

    assert answer.answer.startswith("No single best")
    assert "they scored different images" in answer.numbers


def test_the_best_of_detectors_that_guess_is_said_to_guess():
    answer = standing_answer(standing(place("kd", 0.52, auc=Interval(0.45, 0.58))))

    assert answer.answer == "kd reaches AP 52.0; not shown to be better than chance"
    assert "The interval of its AUC, 45.0 to 58.0, does not lie above 50." in answer.numbers
    assert "No other configuration" in answer.numbers


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (difference(3, 1, 5, spread=0.5, seeds=3), "Helps on unseen generators"),
        (difference(-3, -5, -1, spread=0.5, seeds=3), "Harms on unseen generators"),
        (difference(3, 1, 5), "AP is higher with it (one pair of trainings) on unseen generators"),
        (difference(-3, -5, -1), "AP is lower with it (one pair of trainings) on unseen generators"),
        (difference(3, -1, 5), "No demonstrable difference on unseen generators"),
        (difference(3, 1, 5, spread=6, seeds=3), "No demonstrable difference on unseen generators"),
        (Difference(0.5, 0.6, 0.1, None, None, 1), "Not comparable on unseen generators"),
    ],
)
def test_the_distillation_helps_or_harms_only_if_the_intervals_say_so(found: Difference, expected: str):
    assert distillation_answer([Effect(0.5, standing(place("kd", 0.9)), found)]).answer == expected


def test_the_distillation_is_judged_apart_on_seen_and_on_unseen_generators():
    seen, unseen = standing(place("kd", 0.9), group=SEEN), standing(place("kd", 0.9))

    helps = difference(3, 1, 5, spread=0.5, seeds=3)

    answer = distillation_answer([Effect(0.5, unseen, helps), Effect(0.5, seen, difference(1, -1, 3))])

    assert answer.answer == "Helps on unseen generators; no demonstrable difference on seen generators"
    assert "weight 0.5 changes AP by +3.0 points (95 % interval +1.0 to +5.0" in answer.numbers
    assert distillation_answer([]).answer == "Not measured"


def test_a_report_ranks_its_runs_on_seen_and_on_unseen_generators_apart(tmp_path):
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad", method="eps")
    write_evaluation(good, rows({"adm-a": 1.0, "adm-b": 3.0, "sd": 3.0}, **MANY))
    write_evaluation(bad, rows({"adm-a": 1.0, "adm-b": 0.5, "sd": 0.5}, seed=1, **MANY))

    verdict = verdict_of(good, bad, out=tmp_path / "out")

    assert answer_to(verdict, "Unseen generators")["answer"].startswith("good is best, by ")
    assert (
        answer_to(verdict, "Seen generators")["answer"] == "No single best: bad and good tie"
    )  # in the order of their AP
    unseen, seen = verdict["standings"]
    assert (unseen["generators"], seen["generators"]) == (["adm-b", "sd"], ["adm-a"])
    best, second = unseen["places"]
    lead = second["lead_of_best"]
    assert lead["difference"] == pytest.approx(best["average_precision"] - second["average_precision"])
    assert 0 < lead["interval"][0] < lead["difference"] < lead["interval"][1]
    assert not second["tied"]


def test_the_verdict_is_on_the_page_in_markdown_and_in_json_in_the_same_words(tmp_path):
    run = write_run(tmp_path / "kd")
    write_evaluation(run, rows({"adm-a": 1.0, "adm-b": 3.0}, **MANY))

    verdict = verdict_of(run, out=tmp_path / "out")

    assert json.loads((tmp_path / "out/report.json").read_text())["verdict"] == verdict
    page, text = ((tmp_path / f"out/report.{kind}").read_text() for kind in ("html", "md"))
    for answer in verdict["answers"]:
        assert f"<dt>{answer['question']}</dt><dd><strong>{answer['answer']}.</strong>" in page
        assert f"**{answer['question']}: " in text
    for sentence in verdict["missing"]:
        assert f"<li>{sentence}</li>" in page.replace("<code>", "").replace("</code>", "")
        assert sentence in text
    assert page.index('<dl class="answers">') < page.index("<nav") < page.index("<table")


def test_a_verdict_on_one_seed_few_images_and_no_unseen_generator_says_what_is_missing(tmp_path):
    run = write_run(tmp_path / "kd")
    write_evaluation(run, rows({"adm-a": 1.0}))
    lines = [json.loads(line) | {"val_ap": None} for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    found = " ".join(verdict_of(run, out=tmp_path / "out")["missing"])

    assert "No generator that is new to every run was tested" in found
    assert "The smallest test set has 30 images of a class" in found
    assert "One seed for at least one configuration" in found
    assert "kd: no validation images" in found
    assert "photos: shortcuts were not searched for" in found


def test_nothing_is_missing_that_is_there(tmp_path):
    runs = [write_run(tmp_path / f"s{seed}", seed=seed) for seed in range(3)]
    for seed, run in enumerate(runs):
        write_evaluation(run, rows({"adm-a": 1.0, "adm-b": 3.0, "sd": 2.0}, seed=seed, **MANY))

    found = verdict_of(*runs, out=tmp_path / "out")

    command = "distil-cache audit --cache cache --dataset photos"
    assert found["missing"] == [f"photos: shortcuts were not searched for. Run: {command}"]
    assert "over 3 seeds" in answer_to(found, "Unseen generators")["numbers"]


def test_a_generator_that_only_some_runs_saw_is_left_out_and_named(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", seen=["adm-a", "adm-b"], method="eps")
    for seed, run in enumerate((one, other)):
        write_evaluation(run, rows({"adm-a": 1.0, "adm-b": 3.0, "sd": 2.0}, seed=seed, **MANY))

    verdict = verdict_of(one, other, out=tmp_path / "out")

    assert [entry["generators"] for entry in verdict["standings"]] == [["sd"], ["adm-a"]]
    assert any("Only some of the runs were trained on adm-b" in sentence for sentence in verdict["missing"])


def test_sides_with_some_seeds_in_common_are_compared_over_these_alone(tmp_path):
    without = [write_run(tmp_path / f"plain{seed}", kd_weight=0.0, seed=seed) for seed in (0, 1)]
    with_loss = [write_run(tmp_path / f"kd{seed}", seed=seed) for seed in (1, 2)]
    for run, shift in zip([*without, *with_loss], (0.2, 2.0, 2.0, 4.0), strict=True):
        write_evaluation(run, rows({"adm-b": shift}))

    content = write_report([*without, *with_loss], tmp_path / "out")

    (effect,) = content["comparisons"][0]["distillation"]
    assert (effect["without"], effect["with"]) == (["plain1"], ["kd1"])
    assert effect["mean"]["average_precision"]["difference"] == 0.0
    assert effect["mean"]["average_precision"]["seeds"] == 1


def test_two_runs_are_compared_by_name_even_if_they_are_not_among_the_runs(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", method="eps")
    write_evaluation(one, rows({"adm-a": 1.0, "adm-b": 0.5}, **MANY))
    write_evaluation(other, rows({"adm-a": 1.0, "adm-b": 3.0}, **MANY))

    content = write_report([one], tmp_path / "out", compare=(one, other))

    first = content["verdict"]["answers"][0]
    assert [run["name"] for run in content["runs"]] == ["one", "other"]
    assert first["question"] == "one against other"
    assert first["answer"] == "other is better on unseen generators; no demonstrable difference on seen generators"
    found = content["extra"]["compared"]
    assert (found["first"], found["second"]) == (["one"], ["other"])
    change = found["generators"]["adm-b"]["average_precision"]
    assert change["difference"] == pytest.approx(change["second"] - change["first"])
    assert 0 < change["interval"][0] < change["difference"]
    assert found["generators"]["adm-a"]["average_precision"]["difference"] == 0.0
    assert content["sections"][0]["title"] == "one against other"


def test_sweeps_over_seeds_can_be_compared_and_other_sweeps_cannot(tmp_path):
    for name, shift in (("plain", 0.5), ("kd", 3.0)):
        runs = [write_run(tmp_path / name / f"s{seed}", kd_weight=0.5 * (name == "kd"), seed=seed) for seed in range(3)]
        for seed, run in enumerate(runs):
            write_evaluation(run, rows({"adm-b": shift}, seed=seed))
        (tmp_path / name / "sweep.json").write_text(json.dumps({"runs": [run.name for run in runs]}))
    mixed = write_run(tmp_path / "plain/other", method="eps")
    sides = (tmp_path / "plain", tmp_path / "kd")

    found = write_report([], tmp_path / "out", compare=sides)

    assert found["verdict"]["answers"][0]["answer"].startswith(
        "distildire, distillation weight 0.5 (3 seeds) is better"
    )
    write_evaluation(mixed, rows({"adm-b": 1.0}))
    (tmp_path / "plain/sweep.json").write_text(json.dumps({"runs": ["s0", "other"]}))
    with pytest.raises(UserError, match="differ in more than the seed"):
        write_report([], tmp_path / "out", compare=sides)


def test_the_report_of_a_sweep_ends_with_the_use_of_its_first_run(tmp_path):
    run = write_run(tmp_path / "sweep/s0")
    write_evaluation(run, rows({"adm-b": 1.0}))
    (tmp_path / "sweep/sweep.json").write_text(json.dumps({"runs": ["s0", "s1"]}))
    shown = CliRunner().invoke(app, ["report", str(run.parent), "--out", str(tmp_path / "out"), "--no-evaluate"])
    assert shown.stdout.endswith(f"Next: distil-cache predict IMAGE --run {run}\n"), shown.output


def test_sides_that_cannot_be_compared_are_refused_with_the_reason(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", method="eps")
    write_evaluation(one, rows({"adm-b": 0.5}))
    write_evaluation(other, rows({"adm-b": 0.5}), name="photos-test-resize", transform="resize")

    with pytest.raises(UserError, match="one and other were not evaluated on the same dataset"):
        write_report([], tmp_path / "out", compare=(one, other))
    with pytest.raises(UserError, match="same run"):
        write_report([one], tmp_path / "out", compare=(one, one))


def test_images_of_few_scenes_are_said_to_be_few(tmp_path):
    run = write_run(tmp_path / "kd")
    scored = rows({"adm-b": 3.0}, **MANY)
    write_evaluation(run, scored)
    scenes = {row["key"]: f"scene {number % 12}" for number, row in enumerate(scored)}

    content = write_report([run], tmp_path / "out", clusters=scenes)

    assert any("in 12 clusters; intervals over fewer than 20" in one for one in content["verdict"]["missing"])


def test_other_settings_have_a_sentence_each(tmp_path):
    run = write_run(tmp_path / "kd")
    write_evaluation(run, rows({"adm-b": 3.0}, **MANY))
    write_evaluation(run, rows({"adm-b": 3.0}), name="photos-test-resize", transform="resize")

    verdict = verdict_of(run, out=tmp_path / "out")

    (sentence,) = verdict["further"]
    assert sentence.startswith("photos, split test, resized, unseen generators: kd reaches AP ")
    assert sentence in (tmp_path / "out/report.html").read_text()


def test_a_found_shortcut_is_on_the_first_screen_with_the_share_that_the_swap_test_measured(tmp_path):
    tested, untested = write_run(tmp_path / "tested"), write_run(tmp_path / "untested", method="eps")
    sentence = (
        "Real and generated images can be told apart by their files' headers alone, with an AUC of 1.00 (0.99 to 1.00)."
    )
    for run in (tested, untested):
        folder = write_evaluation(run, rows({"adm-a": 1.0}))
        (folder / "audit.json").write_text(json.dumps(AUDIT | {"sentence": sentence}))
    (tested / "swap.json").write_text(json.dumps(SWAPPED))

    content = write_report([tested, untested], tmp_path / "out")

    answer = answer_to(content["verdict"], "Shortcuts")
    assert (
        answer["answer"]
        == "The files of photos give the label away; swap test: the files' history carries 62 % of the verdict"
    )
    assert sentence in answer["numbers"]
    assert "Swap test of tested on photos: 62 % (51 to 70)" in answer["numbers"]
    assert [one for one in content["verdict"]["missing"] if "--swap" in one] == [
        "untested: how much of the verdict the files' history carries was not measured. Run: distil-cache audit --swap "
        f"{tmp_path / 'untested'}"
    ]
    page = (tmp_path / "out/report.html").read_text()
    assert f"Run: <code>distil-cache audit --swap {tmp_path / 'untested'}</code></li>" in page
    assert content["runs"][0]["swap"]["carried"] == 0.62
    assert content["runs"][1]["swap"] is None


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({"feature": "image", "size": 32}, "the build did not compress all images alike (--harmonize)."),
        (
            {"feature": "image", "harmonize": {"codec": "jpeg", "quality": 95}},
            "The build compressed all images alike (--harmonize jpeg:95), but their sizes and earlier compression may still show.",
        ),
        (None, "unless the build compressed all images alike (--harmonize)."),
    ],
)
def test_the_report_knows_whether_the_build_compressed_all_images_alike(
    tmp_path: Path, image: dict[str, Any] | None, expected: str
) -> None:
    run = write_run(tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    specs = {"eps": {"feature": "eps", "image": image}} if image else {}
    (run / "config.json").write_text(json.dumps(record | {"specs": specs}))
    folder = write_evaluation(run, rows({"adm-a": 1.0}))
    (folder / "audit.json").write_text(json.dumps(AUDIT | {"sentence": "Told by format."}))

    content = write_report([run], tmp_path / "out")

    assert expected in answer_to(content["verdict"], "Shortcuts")["numbers"]
    assert expected in (tmp_path / "out" / "report.md").read_text().partition("Does the file give the label away")[2]


AUDIT = {"real": 40, "fake": 60, "sample": 500, "found": True, "checks": [], "told": []}
SWAPPED = {
    "dataset": "photos", "revision": "abcdef", "split": "test", "checkpoint_sha256": "4" * 64, "real": 40, "fake": 60,
    "moved_real": 0, "moved_fake": 60, "histories": [], "carried": 0.62, "interval": [0.51, 0.7], "reason": "",
    "auc_own": 0.99, "auc_again": 0.99, "auc_swapped": 0.7,
}  # fmt: skip
