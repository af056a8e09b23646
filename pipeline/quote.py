"""What a plan will cost in device-hours and money, from rates that were measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .config import BuildConfig
from .estimate import device_hours, predicted_calls, row_bytes
from .prepare import Prepared
from .rates import Rate, calibrate, known_rates


@dataclass(frozen=True)
class Quote:
    """What a dry run is asked about cost.

    price : of one device for an hour, in any currency. calibrate : measure this device first. processes : how many devices
    will work at the same time.
    """

    price: float | None = None
    calibrate: bool = False
    processes: int = 1

    @classmethod
    def checked(cls, price: float | None, calibrate: bool, processes: int, *, dry_run: bool) -> Quote:
        """Return it; UsageError for a price that is none, or outside a dry run."""
        if price is not None and not (math.isfinite(price) and price >= 0):
            raise UsageError(f"--price {price}: give what an hour of one device costs, from 0 on.")
        if not dry_run and (price is not None or calibrate):
            raise UsageError(f"{'--price' if price is not None else '--calibrate'}: belongs to --dry-run.")
        return cls(price, calibrate, processes)


def quote_plan(config: BuildConfig, ready: Prepared, quote: Quote) -> dict[str, Any]:
    """Return ``bytes`` before compression and, for each device with a known rate, what the plan costs on it.

    The measured device comes first; ``devices`` is empty if there is no rate.
    """
    plan = ready.plan
    calls = predicted_calls(plan, ready.specs, ready.schedule, config.real_step)
    rates = known_rates(config, ready.specs, ready.cache)
    if quote.calibrate:
        measured = calibrate(config, ready.specs, ready.device)
        rates = [measured, *(rate for rate in rates if rate.device != measured.device)]
    return {
        "bytes": sum(plan.missing[name] * row_bytes(spec) for name, spec in ready.specs.items()),
        "price_per_hour": quote.price,
        "processes": quote.processes,
        "devices": [_on_device(rate, calls, plan.missing.get("teacher", 0), quote) for rate in rates],
    }


def _on_device(rate: Rate, calls: int, teacher_rows: int, quote: Quote) -> dict[str, Any]:
    hours = device_hours(calls, teacher_rows, rate.adm_calls, rate.teacher_rows)
    return {
        "device": rate.device,
        "adm_calls_per_second": rate.adm_calls,
        "teacher_rows_per_second": rate.teacher_rows,
        "source": rate.source,
        "device_hours": hours,
        "hours": None if hours is None else hours / quote.processes,
        "cost": None if hours is None or quote.price is None else hours * quote.price,
    }
