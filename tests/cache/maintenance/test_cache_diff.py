"""What differs between two builds, features or caches, in words; and what a listing says, at 80 columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.diff import diff, tables
from distil_cache.cache.maintenance.listing import summary
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.store import Cache
from distil_cache.cli import app
from distil_cache.errors import UsageError
from maintained_cache import SPECS, Backbone, Noise, Picture, build, key_of, keys_of, table_of
from typer.testing import CliRunner

OTHER = {
    "image": Picture(),
    "eps": Noise(steps="ddim10"),
    "teacher": Backbone(eps=Noise(steps="ddim10"), backbone="efficientnet_lite0", views=("identity",)),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache.create(tmp_path_factory.mktemp("diff") / "cache")


@pytest.fixture(scope="module")
def records(cache: Cache) -> list[BuildRecord]:
    """Ten images; eight of them with twelve others; the ten with other settings."""
    first = {key_of(n): "train" if n < 8 else "val" for n in range(10)}
    second = {key_of(n): "val" if n < 5 else "train" for n in range(2, 22)}
    records = [build(cache.root, first)[0], build(cache.root, second)[0], build(cache.root, first, specs=OTHER)[0]]
    cache.builds().add_ref("kd05", records[0].id, "/runs/kd05")
    return records


def said(result: dict[str, object]) -> list[str]:
    return [f"{entry['about']}: {entry['what']}" for entry in result["differences"]]  # type: ignore[attr-defined]


def test_two_builds_of_two_revisions_differ_in_samples_and_shards(cache: Cache, records: list[BuildRecord]) -> None:
    result = diff(records[0].id, records[1].id[:6], cache.root)
    assert (result["kind"], result["same"]) == ("builds", False)
    lines = said(result)
    samples = next(line for line in lines if line.startswith("dataset"))
    assert samples.startswith("dataset: 12 samples added, 2 removed")
    assert "3 moved from train to val" in samples
    assert "2 moved from val to train" in samples
    assert lines[1:] == ["image: 1 shard only in B", "eps: 1 shard only in B", "teacher: 2 shards only in B"]


def test_two_builds_with_other_settings_differ_in_words(cache: Cache, records: list[BuildRecord]) -> None:
    lines = said(diff(records[0].id, records[2].id, cache.root))
    assert lines == [
        "eps: steps ddim20 -> ddim10",
        "teacher: backbone resnet50 -> efficientnet_lite0; made from the other eps; views identity/hflip -> identity",
    ]


def test_two_features_differ_in_settings_also_of_what_they_derive_from_and_in_samples(
    cache: Cache, records: list[BuildRecord]
) -> None:
    lines = said(diff(SPECS["teacher"].folder, OTHER["teacher"].fingerprint()[:12], cache.root))
    assert lines[:2] == ["settings: backbone resnet50 -> efficientnet_lite0", "settings: eps.steps ddim20 -> ddim10"]
    assert lines[-1] == "samples: 14 only in A"


def test_a_thing_does_not_differ_from_itself(cache: Cache, records: list[BuildRecord]) -> None:
    assert diff(records[0].id, records[0].id, cache.root)["same"]
    assert diff(str(cache.root), str(cache.root))["same"]


def test_two_caches_differ_in_datasets_builds_features_and_bytes(
    cache: Cache, records: list[BuildRecord], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    build(other, {key_of(n): "train" if n < 8 else "val" for n in range(10)}, form="webdataset")
    build(other, {key_of(1): "train"}, name="small")
    lines = said(diff(str(cache.root), str(other)))
    assert "dataset small: only in B" in lines
    assert f"build {records[1].id}: only in A" in lines
    assert f"{OTHER['eps'].folder}: only in A" in lines
    eps = [line for line in lines if line.startswith(SPECS["eps"].folder)]
    assert eps == [
        f"{SPECS['eps'].folder}: 1 shard only in A",
        f"{SPECS['eps'].folder}: 2 shards of the same samples with other bytes (another format, or other arithmetic)",
    ]


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ("nothing", "eps", "neither a build nor a feature"),
        ("eps", "image", "eps: fits several"),
        ("", "image", "neither a build nor a feature"),
    ],
)
def test_a_name_that_fits_nothing_or_several_things_is_refused(
    cache: Cache, records: list[BuildRecord], a: str, b: str, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        diff(a, b, cache.root)


def test_a_build_and_a_feature_cannot_be_compared(cache: Cache, records: list[BuildRecord]) -> None:
    with pytest.raises(UsageError, match="cannot be compared"):
        diff(records[0].id, SPECS["eps"].folder, cache.root)


def test_tables_are_compared_by_all_occurrences_of_a_sample() -> None:
    keys = dict.fromkeys(keys_of(range(6)), "train")
    before = table_of(keys, label=0)
    assert tables(before, before) == []
    assert tables(before, table_of(keys, label=1)) == ["6 samples relabelled"]
    assert tables(before, table_of(keys, label=0, generator="adm")) == ["6 samples with another generator"]
    assert tables(before, table_of(keys, label=0, path="elsewhere")) == []
    assert tables(before, table_of(dict(list(keys.items())[:5]), label=0)) == ["1 sample removed"]


def test_the_listing_says_which_runs_and_builds_use_what(cache: Cache, records: list[BuildRecord]) -> None:
    listed = summary(cache)
    runs = {row["id"]: row["runs"] for row in listed["builds"]}
    assert runs == {record.id: ["kd05"] if record is records[0] else [] for record in records}
    features = {row["folder"]: row for row in listed["features"]}
    assert features[SPECS["eps"].folder]["runs"] == ["kd05"]
    assert features[OTHER["eps"].folder]["runs"] == []
    assert features[OTHER["eps"].folder]["builds"] == [records[2].id]
    assert features[SPECS["image"].folder]["rows"] == 22
    assert features[SPECS["eps"].folder]["words"] == "from image, steps ddim20"


def test_the_listing_counts_merged_shards_once(tmp_path: Path) -> None:
    for n in (3, 6):
        build(tmp_path / "c", dict.fromkeys(keys_of(range(n)), "train"))
    compact(Cache.open(tmp_path / "c"))
    image = next(row for row in summary(Cache.open(tmp_path / "c"))["features"] if row["feature"] == "image")
    assert (image["rows"], image["shards"]) == (6, 1)
    assert image["merged_away"]["shards"] == 2  # type: ignore[index]


def test_the_commands_print_within_80_columns_and_give_json(
    cache: Cache, records: list[BuildRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    runner = CliRunner()
    for arguments, key in (
        (["ls", str(cache.root)], "builders"),
        (["gc", str(cache.root)], "dry_run"),
        (["compact", str(cache.root), "--rows", "2"], "rows"),
    ):
        shown = runner.invoke(app, ["cache", *arguments])
        assert shown.exit_code == 0, shown.output
        lines = [line for line in shown.stdout.splitlines() if not line.startswith("Next: ")]  # to be copied whole
        assert max(map(len, lines)) <= 80
        assert key in json.loads(runner.invoke(app, ["cache", *arguments, "--json"]).stdout)
    listed = runner.invoke(app, ["cache", "ls", str(cache.root)]).stdout
    assert "kd05" in listed
    assert "backbone efficientnet_lite0" in listed
    shown = runner.invoke(app, ["cache", "diff", str(cache.root), records[0].id, records[2].id]).stdout
    assert "eps: steps ddim20 -> ddim10" in shown
    assert runner.invoke(app, ["cache", "gc", str(cache.root), "--grace", "-1"]).exit_code == 2
