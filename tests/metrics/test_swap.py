"""The swap test's share: of a sum of content and history it is the history's part."""

from __future__ import annotations

import numpy as np
import pytest
from distil_cache.metrics.swap import carried_by_history


def logits(content: float, history: float, *, images: int = 200) -> dict[str, np.ndarray]:
    """Logits of images whose classes lie apart by a part of the content and a part of the history."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], images)
    own = content * (labels - 0.5) + history * (labels - 0.5) + rng.normal(size=2 * images)
    swapped = own - 2 * history * (labels - 0.5)
    return {"labels": labels, "own": own, "again": own, "swapped": swapped}


@pytest.mark.parametrize(("content", "history"), [(4.0, 0.0), (0.0, 4.0), (3.0, 1.0)])
def test_the_share_is_that_of_the_history(content: float, history: float) -> None:
    share, within = carried_by_history(**logits(content, history), moved=np.ones(400, bool))

    assert share == pytest.approx(history / (content + history), abs=0.05)
    assert within is not None
    assert within.low <= share <= within.high


def test_the_share_is_the_same_if_only_one_class_can_be_given_the_others_history() -> None:
    scored = logits(3.0, 1.0)
    only_fakes = scored["labels"] == 1
    scored["swapped"] = np.where(only_fakes, scored["swapped"], scored["own"])

    assert carried_by_history(**scored, moved=only_fakes)[0] == pytest.approx(0.25, abs=0.02)


def test_compressing_once_more_as_such_is_no_history_of_a_class() -> None:
    scored = logits(4.0, 0.0)
    blurred = scored["own"] - 2.0  # whichever class's history it is

    share, _ = carried_by_history(**scored | {"again": blurred, "swapped": blurred}, moved=np.ones(400, bool))

    assert share == pytest.approx(0.0, abs=1e-9)


def test_there_is_no_share_without_a_moved_image_a_second_class_or_a_difference_of_classes() -> None:
    scored = logits(4.0, 1.0)

    assert carried_by_history(**scored, moved=np.zeros(400, bool)) == (None, None)
    assert carried_by_history(**logits(0.0, 0.0), moved=np.ones(400, bool)) == (None, None)
    reals = {name: values[:200] for name, values in scored.items()}
    assert carried_by_history(**reals, moved=np.ones(200, bool)) == (None, None)
