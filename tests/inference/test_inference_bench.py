"""The command bench: times in interleaved rounds, cold starts in fresh processes, a result that can be read back."""

from __future__ import annotations

import html
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache.cli import app
from distil_cache.commands.show.bench import amount, duration, show_bench
from distil_cache.errors import UsageError, UserError
from distil_cache.inference.bench.cold_start import cold_start, peak_bytes
from distil_cache.inference.bench.method_runner import MethodJob
from distil_cache.inference.bench.result import Costs, read_costs, shares
from distil_cache.inference.bench.run import BenchConfig, run_bench
from distil_cache.inference.bench.timing import PassTimer, medians, time_interleaved
from distil_cache.models.diffusion.checkpoints import find_adm
from distil_cache.report.sections.bench import additions
from run_folders import rows, write_evaluation, write_run
from small_models import CONFIG, SIDE, write_adm
from typer.testing import CliRunner


def test_rounds_are_interleaved_after_one_warm_up_of_each() -> None:
    order: list[str] = []

    def work(name: str) -> Any:
        def run(clock: PassTimer) -> None:
            order.append(name)
            time.sleep(0.002)
            clock.mark("work")

        return run

    passes = time_interleaved({name: work(name) for name in "abc"}, 3, least=0.005)
    warm_up, measured = order[:3], order[3:]
    assert warm_up == ["a", "b", "c"]
    assert [name for name, _ in itertools.groupby(measured)] == ["a", "b", "c"] * 3
    assert {name: len(found) for name, found in passes.items()} == {name: measured.count(name) for name in "abc"}
    assert all(sum(one.seconds for one in found) >= 3 * 0.005 for found in passes.values())


def test_a_clock_ends_each_stage_when_the_device_is_done_and_medians_are_per_image() -> None:
    waits: list[None] = []
    clock = PassTimer(lambda: waits.append(None))
    clock.mark("a")
    clock.mark("b")
    assert len(waits) == 3
    passes = []
    for seconds in (4.0, 2.0, 60.0):
        one = PassTimer(lambda: None)
        one.stages, one.cpu = {"a": seconds, "b": seconds / 2}, seconds
        passes.append(one)
    found = medians(passes, images=2)
    assert (found.passes, found.seconds, found.cpu_seconds) == (3, 3.0, 2.0)
    assert found.stages == {"a": 2.0, "b": 1.0}
    assert found.quartiles[0] < found.seconds < found.quartiles[1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("bench")
    adm = write_adm(folder / "adm.safetensors")
    config = BenchConfig(
        str(adm), methods=("distildire", "dire"), backbone="small", rounds=1, batch_size=2, device="cpu"
    )
    out = folder / "new" / "bench.json"
    return run_bench(config, out=out), out


def test_a_bench_gives_time_memory_and_the_ratio_to_dire(measured: tuple[dict[str, Any], Path]) -> None:
    result, out = measured
    dire, distildire = result["rows"]
    assert (dire["method"], distildire["method"]) == ("dire", "distildire")
    assert dire["warm"]["cpu_seconds"] > 5 * distildire["warm"]["cpu_seconds"]
    assert distildire["dire"]["warm"] == pytest.approx(dire["warm"]["seconds"] / distildire["warm"]["seconds"])
    assert list(distildire["warm"]["stages"]) == ["to the device", "ADM", "student", "to the host"]
    cold = distildire["cold"]
    assert cold["start"] > cold["first"]  # torch alone takes seconds to import
    assert cold["start"] > cold["load"]
    assert 2**27 < cold["peak_bytes"] < 2**33
    assert 1e-4 < result["decode"] < 60  # seconds of a photograph
    assert result["conditions"]["weights"] == find_adm(out.parents[1] / "adm.safetensors").digest


def test_the_shares_of_an_images_time_add_up_to_all_of_it(measured: tuple[dict[str, Any], Path]) -> None:
    costs = Costs.model_validate(measured[0])
    found = shares(costs, costs.rows[0])
    assert next(iter(found)) == "decode"
    assert sum(found.values()) == pytest.approx(1)
    assert found["ADM"] > 0.5


def test_the_file_says_what_it_is_and_reads_back_as_what_was_measured(measured: tuple[dict[str, Any], Path]) -> None:
    result, out = measured
    stored = json.loads(out.read_text())
    assert (stored["kind"], stored["version"]) == ("distil-cache-bench", 1)
    assert stored == result
    assert read_costs(out).model_dump(mode="json") == result


def test_a_table_for_people_has_times_and_shares(
    measured: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show_bench(measured[0])
    shown = capsys.readouterr().out
    assert "DistilDIRE" in shown
    assert "One multiply-add is 2 FLOPs" in shown
    assert duration(measured[0]["rows"][1]["warm"]["seconds"]) in shown
    assert "Where the time goes" in shown


def test_the_message_of_a_process_that_fails_is_reported(tmp_path: Path) -> None:
    adm = write_adm(tmp_path / "adm.safetensors")
    job = MethodJob(
        "eps", str(adm), CONFIG.model_dump(), str(tmp_path / "none"), "small", SIDE, "ddim4", 1, "cpu", "fp32", 1
    )
    with pytest.raises(UserError, match=r"measures eps failed: FileNotFoundError: .*none"):
        cold_start(job)


def test_peak_memory_is_that_of_this_process_and_grows_with_it() -> None:
    before = peak_bytes(torch.device("cpu"))
    held = torch.ones(2**26)
    assert peak_bytes(torch.device("cpu")) >= before
    assert peak_bytes(torch.device("cpu")) > held.numel() * held.element_size()


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_command_counts_without_an_adm_file_and_times_nothing(tmp_path: Path) -> None:
    flags = tmp_path / "flags.json"
    flags.write_text(json.dumps(CONFIG.model_dump()))
    done = invoke("--random-adm", "--adm-config", str(flags), "--backbone", "small", "--no-timing", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [row["method"] for row in result["rows"]] == ["cnndet", "dire", "dnf", "distildire", "eps"]
    assert all(row["warm"] is None and row["cold"] is None for row in result["rows"])
    assert result["conditions"]["weights"] is None
    assert result["decode"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adm": "demo", "random_adm": True}, "leave --adm out"),
        ({"size": 100}, "multiples of 32"),
        ({"precision": "tf32", "device": "cpu", "timed": True}, "tf32"),
        ({"batch_size": 0}, "at least 1"),
        ({"methods": ("guess",)}, "unknown method 'guess'"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_bench(BenchConfig(**{"timed": False, **changes}))


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_timed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        run_bench(BenchConfig("demo", backbone="small"), out=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a result of bench"),
        ('{"kind": "other"}', "not a result of bench"),
        (" " * 1_000_001, "more than 1,000,000 are not read"),
    ],
)
def test_a_file_that_is_not_a_result_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_costs(path)


def test_numbers_are_shown_with_units_that_suit() -> None:
    assert (amount(89_594_795_757_568), amount(23_510_081), amount(12)) == ("89.59 T", "23.51 M", "12.00")
    assert (duration(0.00058827), duration(0.9999), duration(6.978)) == ("0.588 ms", "1.00 s", "6.98 s")


def test_the_report_repeats_the_table_beside_the_papers_figures(
    measured: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    write_evaluation(run, rows({"adm-a": 1.0}))
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "out"), "--bench", str(measured[1])])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["extra"]["costs"]["bench"] == measured[0]
    assert {row["method"]: row["tflop"] for row in report["extra"]["costs"]["paper"]}["dire"] == 149.62
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What an image costs" in page
    assert "paper: 149.62 T" in page
    assert "Where an image's time goes" in html.unescape(page)


def test_the_report_of_a_table_that_was_only_counted_has_no_times(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    run_bench(BenchConfig("demo", backbone="small", timed=False), out=out)
    found = additions(out)
    assert [section.title for section in found.sections] == ["What an image costs"]
    table = found.sections[0].table
    assert table is not None
    assert [row[1] for row in table.rows] == ["0", "40", "20", "1", "1"]
    assert table.columns[3] == "FLOPs\nG"
    assert table.rows[1][3] == "14.79\n1 x\npaper: 149.62 T"
    assert table.rows[3][3] == "0.3854\n38.4 x\npaper: 5.01 T"
    assert {row[4].splitlines()[0] for row in table.rows} == {"–"}
