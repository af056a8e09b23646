"""``build --array I/N``: builds that share a plan out among them and know nothing of each other but the cache."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_help import config_of
from distil_cache.cache.index.index import Index
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.store import Cache
from distil_cache.commands.show.build import show_build
from distil_cache.features.registry import with_inputs
from distil_cache.images.spec import ImageSpec
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.cluster.placement import Placement
from distil_cache.pipeline.planning.plan import Plan, PlanPartition, Samples, make_plan
from distil_cache.progress import Silent
from hypothesis import given, settings
from hypothesis import strategies as st
from maintained_cache import checksums
from small_models import write_material

WANTED = with_inputs({"eps": frozenset({"train", "test"})})


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_material(tmp_path_factory.mktemp("material"), {"train": 10, "test": 2})
    run_build(config_of(folder, folder / "loop"), Silent())
    return folder


def samples_of(count: int, test_share: float, seed: int) -> Samples:
    draw = random.Random(seed)
    keys = sorted({f"{draw.getrandbits(128):032x}" for _ in range(count)})
    return Samples.of(keys, ["test" if draw.random() < test_share else "train" for _ in keys])


def parts_of(samples: Samples, of: int, shard_size: int, images: Index) -> list[Plan]:
    indexes = {"image": images, "eps": Index.empty()}
    return [make_plan(samples, WANTED, indexes, shard_size, PlanPartition(number, of)) for number in range(1, of + 1)]


@settings(max_examples=60)
@given(
    count=st.integers(1, 150),
    test_share=st.floats(0, 1),
    of=st.integers(1, 7),
    shard_size=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_parts_cover_the_plan_once_and_are_equally_large(
    count: int, test_share: float, of: int, shard_size: int, seed: int
) -> None:
    samples = samples_of(count, test_share, seed)
    whole = make_plan(samples, WANTED, {"image": Index.empty(), "eps": Index.empty()}, shard_size)
    parts = parts_of(samples, of, shard_size, Index.empty())
    assert sorted((task for part in parts for task in part.tasks), key=lambda task: task.keys) == sorted(
        whole.tasks, key=lambda task: task.keys
    )
    sizes = [len(part.tasks) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert {name: sum(part.missing[name] for part in parts) for name in whole.missing} == whole.missing
    assert all(part.wanted == whole.wanted for part in parts)


def test_a_shard_stays_in_its_part_whatever_is_finished_in_the_meantime(tmp_path: Path) -> None:
    samples, draw = samples_of(400, 0.3, 3), random.Random(5)
    store = Cache.create(tmp_path).feature(ImageSpec(size=16))
    before = {
        task.keys: number for number, plan in enumerate(parts_of(samples, 5, 20, store.index())) for task in plan.tasks
    }
    assert len(before) >= 20
    for keys in draw.sample(sorted(before), 12):
        bad = set(draw.sample(keys, draw.randrange(6)))  # some cannot be decoded, as only the build finds out
        good = [key for key in keys if key not in bad]
        pixels = np.zeros((len(good), 3, 16, 16), np.uint8)
        store.commit(keys, pixels, keys=good, rejected=dict.fromkeys(bad, "truncated: it ends early"))
    parts = parts_of(samples, 5, 20, store.index(refresh=True))
    after = [(task, number) for number, plan in enumerate(parts) for task in plan.tasks]
    assert len(after) == len(before)
    for task, number in after:
        (planned,) = [keys for keys in before if set(task.keys) <= set(keys)]
        assert before[planned] == number


def built(material: Path, cache: Path, array: str | None = None, **changes: Any) -> dict[str, Any]:
    return run_build(config_of(material, cache, **changes), Silent(), placement=Placement.checked(array=array))


def test_parts_in_any_order_make_the_bytes_of_one_build_and_the_last_one_writes_its_record(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = built(material, material / "loop")
    for done, number in enumerate((3, 1), 1):
        result = built(material, tmp_path, f"{number}/3")
        assert (result["build"], result["revision"]) == (None, None)
        assert result["part"] == {"number": number, "of": 3, "shards_left": 6 - 2 * done}
        assert result["features"]["image"]["computed"] == 8
    assert Cache.open(tmp_path).builds().ids() == []
    show_build(result)
    shown = " ".join(capsys.readouterr().out.split())
    assert "layout cnndet. 24 files: 24 used." in shown
    assert "noise, part 1 of 3 feature computed" in shown
    assert "Part 1 of 3 finished" in shown
    last = built(material, tmp_path, "2/3")
    assert last["part"] == {"number": 2, "of": 3, "shards_left": 0}
    assert (last["build"], last["revision"], last["samples"]) == (whole["build"], whole["revision"], 24)
    assert checksums(tmp_path) == checksums(material / "loop")
    assert verify(Cache.open(tmp_path)) == []


def test_a_plain_build_after_the_parts_computes_nothing_that_is_there_and_writes_the_record(
    material: Path, tmp_path: Path
) -> None:
    built(material, tmp_path, "1/2")
    assert built(material, tmp_path, "1/2")["adm_calls"] == 0
    rest = built(material, tmp_path)
    assert rest["features"]["image"] == {**rest["features"]["image"], "computed": 12, "reused": 12}
    assert rest["build"] == built(material, material / "loop")["build"]
    again = built(material, tmp_path, "1/2")
    assert (again["build"], again["adm_calls"]) == (rest["build"], 0)
