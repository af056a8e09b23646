"""Estimate the cost of a plan: ADM calls, bytes before compression, device-hours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ...cache.spec import Spec
from ...features.contract import Producer
from ...images.spec import ImageSpec
from .plan import Plan, Task


def predicted_calls(plan: Plan, producers: Sequence[Producer]) -> Counter[str]:
    """Return the images x calls of all tasks by unit, assuming that every image can be decoded."""
    return sum((task_calls(task, producers) for task in plan.tasks), Counter())


def task_calls(task: Task, producers: Sequence[Producer]) -> Counter[str]:
    """Return the images x calls of one task by unit, assuming that every image can be decoded."""
    return Counter({producer.unit: producer.calls(task.keys, task.missing) for producer in producers})


def image_size(specs: Mapping[str, Spec]) -> int:
    """Return the side of the cached image in pixels."""
    image = specs["image"]
    assert isinstance(image, ImageSpec)
    return image.size


def device_hours(
    adm_calls: int, rows: Mapping[str, int], adm_rate: float | None, row_rates: Mapping[str, float] | None
) -> float | None:
    """Return the hours that one device needs.

    Parameters
    ----------
    adm_calls
        Images x ADM calls.
    rows
        Unit -> images of what is made without the ADM.
    adm_rate
        Images x ADM calls a second; None if unknown.
    row_rates
        Unit -> images a second, as far as known; None if ``adm_rate`` includes them.

    Returns
    -------
    float or None
        None if there are ADM calls and no rate for them.
    """
    if adm_calls and adm_rate is None:
        return None
    seconds = adm_calls / adm_rate if adm_rate else 0.0
    seconds += sum(rows[unit] / rate for unit, rate in (row_rates or {}).items())
    return seconds / 3600
