"""``dc.train``: what is not given when a training is resumed is the run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import distil_cache as dc
import pytest
from distil_cache.errors import UsageError

pytest.importorskip("torch")
from small_cache import make_cache, rows

SETTINGS: dict[str, Any] = {"method": "eps", "backbone": "small", "batch_size": 12, "lr": 1e-3}


def test_a_training_is_resumed_with_the_cache_and_the_settings_of_its_run(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", [*rows("train", 8, {"gan": 8}), *rows("val", 4, {"gan": 4})])
    run = tmp_path / "run"
    dc.train(run, cache=tmp_path / "cache", dataset="pictures", epochs=1, **SETTINGS)
    longer = dc.train(run, resume=True, epochs=2)
    assert longer.epochs == 2
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("missing", "given"),
    [("cache", {"dataset": "pictures"}), ("dataset", {"cache": "cache"}), ("cache", {"resume": True})],
)
def test_a_training_that_no_run_knows_names_what_is_missing(
    missing: str, given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"train: {missing} is missing"):
        dc.train(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
