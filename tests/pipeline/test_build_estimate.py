"""``build --dry-run``: what a plan takes on devices whose rate was measured, and what it costs."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cluster_help import config_of
from distil_cache.commands.show.build import show_build
from distil_cache.errors import UsageError, UserError
from distil_cache.pipeline import feeding
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.cluster.placement import Placement
from distil_cache.pipeline.cost import CostRequest
from distil_cache.pipeline.execution.tasks import TaskReport, TaskResult
from distil_cache.pipeline.planning.estimate import device_hours
from distil_cache.pipeline.results import BuildTotals
from distil_cache.progress import Silent
from small_models import write_material


@pytest.fixture(autouse=True)
def _own_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_material(tmp_path_factory.mktemp("material"), {"train": 4, "test": 2})


def plan(material: Path, cache: Path, quote: CostRequest | None = None, **changes: Any) -> dict[str, Any]:
    place = Placement(workers=4)
    quoted = quote or CostRequest(processes=place.processes)
    return run_build(
        config_of(material, cache, **changes), Silent(), dry_run=True, placement=place, cost_request=quoted
    )


def test_hours_follow_from_calls_and_rates() -> None:
    rows = {"teacher": 3600, "bands": 7200}
    assert device_hours(7200, {}, 2.0, {}) == 1.0
    assert device_hours(7200, rows, 2.0, {"teacher": 1.0}) == 2.0
    assert device_hours(7200, rows, 2.0, {"teacher": 1.0, "bands": 2.0}) == 3.0
    assert device_hours(7200, rows, 2.0, None) == 1.0
    assert device_hours(0, {}, None, {}) == 0.0
    assert device_hours(1, {}, None, {"teacher": 5.0}) is None


def test_without_a_measured_rate_there_is_no_estimate_and_the_plan_says_so(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = plan(material, tmp_path / "cache")
    assert planned["estimate"]["devices"] == []
    assert planned["estimate"]["bytes"] == sum(row["bytes"] for row in planned["features"].values()) > 0
    show_build(planned)
    assert "no time estimate. Measure it with --calibrate" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "cache").exists()


def test_a_calibration_is_remembered_for_this_model_size_and_precision_and_priced(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distil_cache.pipeline.cost.MEASURE_SECONDS", 0.05)
    planned = plan(material, tmp_path / "cache", CostRequest(price=3.0, calibrate=True, processes=4))
    (here,) = planned["estimate"]["devices"]
    calls, rows = planned["adm_calls"], planned["features"]["teacher"]["missing"]
    hours = (calls / here["adm_calls_per_second"] + rows / here["teacher_rows_per_second"]) / 3600
    assert here["device_hours"] == pytest.approx(hours)
    assert here["hours"] == pytest.approx(hours / 4)
    assert here["cost"] == pytest.approx(hours * 3)
    assert here["source"] == "measured now"
    show_build(planned)
    assert "ADM calls/s, measured now" in " ".join(capsys.readouterr().out.split())

    (later,) = plan(material, tmp_path / "cache")["estimate"]["devices"]
    assert (later["adm_calls_per_second"], later["cost"]) == (here["adm_calls_per_second"], None)
    assert later["source"].startswith("measured on 20")
    assert plan(material, tmp_path / "cache", precision="bf16")["estimate"]["devices"] == []
    assert plan(material, tmp_path / "cache", image_size=32)["estimate"]["devices"] == []


def test_the_log_of_a_build_gives_the_rate_of_the_next_and_nonsense_in_it_is_passed_over(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distil_cache.pipeline.cost.LEAST_SECONDS", 0.0)
    built = run_build(config_of(material, tmp_path, features=("image,eps",)), Silent())
    (log,) = tmp_path.glob("features/eps-*/log.jsonl")
    event = json.loads(log.read_text())
    (speed,) = event["speed"]
    with log.open("a") as file:
        for wrong in (0, -5, 10**400, True, "9", None):
            file.write(json.dumps({**event, "speed": [{**speed, "device": "Odd", "adm_calls": wrong}]}) + "\n")
        file.write(json.dumps({**event, "speed": [{**speed, "device": "Odd", "seconds": float("nan")}]}) + "\n")
        file.write(json.dumps({**event, "speed": 7}) + "\n[1]\nno json\n" + "[" * 100_000 + "\n")
    (here,) = plan(material, tmp_path)["estimate"]["devices"]
    assert here["device"] == speed["device"]
    assert here["adm_calls_per_second"] == pytest.approx(event["adm_calls"] / speed["seconds"])
    assert here["source"] == f"build {built['build']}"
    assert plan(material, tmp_path, compile=True)["estimate"]["devices"] == []


@pytest.mark.parametrize(
    ("price", "calibrate", "dry_run", "said"),
    [
        (2.0, False, False, "--price"),
        (None, True, False, "--calibrate"),
        (-1.0, False, True, "--price -1"),
        (float("nan"), False, True, "--price nan"),
    ],
)
def test_questions_about_cost_belong_to_a_dry_run(
    price: float | None, calibrate: bool, dry_run: bool, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        CostRequest.checked(price, calibrate, 1, dry_run=dry_run)


def test_what_decoding_and_writing_give_is_held_against_what_the_devices_will_ask_for(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distil_cache.pipeline.cost.MEASURE_SECONDS", 0.01)
    monkeypatch.setattr(feeding, "cores", lambda: 16)
    monkeypatch.setattr(feeding, "threads_each", lambda processes: 16 // processes)
    request = CostRequest(calibrate=True, processes=4, on_one_machine=4)
    assert plan(material, tmp_path / "cache")["estimate"]["feeding"] is None
    measured = plan(material, tmp_path / "cache", request)["estimate"]["feeding"]
    decode, write = measured["decode_core_seconds"], measured["write_core_seconds"]
    assert min(decode, write) > 0
    assert measured["images_per_second"] == pytest.approx(min(12 / (decode + write), 16 / decode))
    assert (measured["processes"], measured["decode_threads"], measured["source"]) == (4, 4, "measured now")

    memory = Path(os.environ["XDG_CACHE_HOME"]) / "distil-cache" / "rates.json"
    known = json.loads(memory.read_text())
    for name, entry in list(known.items()):
        if "adm" in entry["key"]:
            known[f"fast {name}"] = {**entry, "device": "Fast card", "per_second": 1e9}
            known[f"slow {name}"] = {**entry, "device": "Slow card", "per_second": 1e-3}
    memory.write_text(json.dumps(known))
    quoted = CostRequest(processes=4, on_one_machine=4)
    planned = plan(material, tmp_path / "cache", quoted)
    found = planned["estimate"]
    assert found["feeding"] | {"source": ""} == pytest.approx(measured | {"source": ""})  # the sum has another order
    devices = {device["device"]: device for device in found["devices"]}
    fast, slow = devices["Fast card"], devices["Slow card"]
    assert fast["busy"] == pytest.approx(measured["images_per_second"] / (4 * fast["images_per_second"]["plan"]))
    assert fast["busy"] < 1 == slow["busy"]
    assert fast["images_per_second"]["eps"] == 1e9
    assert fast["images_per_second"]["dire"] < 1e9
    (here,) = [device for name, device in devices.items() if name.startswith("CPU of")]
    assert here["busy"] is None
    show_build(planned)
    said = " ".join(capsys.readouterr().out.split())
    assert "Decoding and writing give up to" in said
    assert "Warning: decoding and writing are the bottleneck: they keep Fast card busy for" in said
    assert "they keep Slow card" not in said


@pytest.mark.parametrize(
    ("busy", "seconds", "said"), [(0.41, 500, True), (0.41, 30, False), (0.9, 500, False), (None, 500, False)]
)
def test_a_long_build_says_how_long_its_devices_waited(
    material: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    busy: float | None,
    seconds: float,
    *,
    said: bool,
) -> None:
    result = run_build(config_of(material, tmp_path, features=("image",)), Silent())
    assert result["device_busy"] is None
    show_build({**result, "device_busy": busy, "seconds": seconds})
    assert ("The devices computed for 41% of the time" in " ".join(capsys.readouterr().out.split())) is said


def test_the_share_of_time_in_which_devices_compute_counts_every_worker() -> None:
    totals = BuildTotals(seconds=10.0)
    assert totals.busy is None
    for worker in ("a", "b"):
        totals.add(TaskReport(TaskResult(adm_calls=40, seconds=6.0), worker, "Card"))
    assert totals.busy == pytest.approx(0.6)


def test_a_dry_run_without_the_weights_downloads_nothing_and_counts_all_rows_as_missing(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTIL_CACHE_WEIGHTS", str(tmp_path / "weights"))
    changes = {"adm": "adm256", "teacher": "resnet50", "teacher_weights": None, "steps": "ddim20"}
    planned = plan(material, tmp_path / "cache", **changes)
    assert not (tmp_path / "weights").exists()
    assert planned["features"]["eps"]["fingerprint"] is None
    assert planned["features"]["image"]["fingerprint"] is not None
    assert planned["features"]["eps"]["missing"] == planned["samples"]
    show_build(planned)
    said = " ".join(capsys.readouterr().out.split())
    assert "256x256_diffusion_uncond.pt (2,211 MB) from https://" in said
    assert "resnet50-11ad3fa6.pth (103 MB) from https://" in said
    assert "not known" in said
    with pytest.raises(UserError, match="--dry-run: downloads nothing"):
        plan(material, tmp_path / "cache", **{**changes, "adm": "hf:owner/repo/adm.pt"})


def test_a_temporary_folder_that_cannot_be_written_ends_a_calibration_in_a_sentence(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(feeding, "write_data", full)
    with pytest.raises(UserError, match=r"No space left|full"):
        plan(material, tmp_path / "cache", CostRequest(calibrate=True), features=("image",))
