"""Estimate the cost of a plan in device-hours and money, from the throughput of devices.

A rate is measured now, read from an earlier measurement, or taken from the logs of builds. Measurements are stored in
the user's cache folder by device, model, image size, precision and ``--compile``. With shared home folders, a login
node without a GPU can use what was measured on nodes with one.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..cache.spec import Spec
from ..cache.store import Cache, FeatureStore
from ..errors import IntegrityError, UsageError
from ..features.contract import Single
from ..features.registry import layout_of, producers_of, walk_of
from ..features.walk import CALLS, to_signal
from ..images.budget import decoding_bytes
from ..models.device import arithmetic, device_name
from ..models.diffusion.conditioning import with_classes
from ..models.diffusion.ddim import used_steps
from ..models.diffusion.pass_calls import steps_called
from ..storage import AnyPath
from ..storage.atomic import read_lines
from .config import BuildConfig
from .execution.networks import adm_batch, adm_on, compiled, network_on, single_batch
from .feeding import Feeding, feeding
from .planning.estimate import device_hours, image_size, predicted_calls
from .planning.host_memory import planned_memory
from .planning.prepare import BuildPlan
from .rates import is_rate, remember, remembered

MEASURE_SECONDS = 3.0
SLOW_SECONDS = 30.0
"""A batch that would take longer is replaced by one image."""
LEAST_SECONDS = 1.0
"""Rates of builds with less device time are ignored."""
_TAIL = 1 << 20
"""Bytes read from the end of a log."""
_MOST_CALLS = 2**62
_SPEED = ("device", "adm_calls", "seconds")


@dataclass(frozen=True)
class CostRequest:
    """Options of a dry run's cost estimate.

    Attributes
    ----------
    price
        Price of one device for an hour, in any currency.
    calibrate
        Measure this device, and decoding and writing on this machine, first.
    processes
        Number of devices that will work at the same time.
    on_one_machine
        Number of worker processes on one machine; None if a build computes in its own process, or on workers that
        others have started.
    """

    price: float | None = None
    calibrate: bool = False
    processes: int = 1
    on_one_machine: int | None = None

    @classmethod
    def checked(
        cls,
        price: float | None,
        calibrate: bool,
        processes: int,
        on_one_machine: int | None = None,
        *,
        dry_run: bool,
    ) -> CostRequest:
        """Validate the options. Raises UsageError for an invalid price, or for options outside a dry run."""
        if price is not None and not (math.isfinite(price) and price >= 0):
            raise UsageError(f"--price {price}: give the price of one device for an hour, 0 or more.")
        if not dry_run and (price is not None or calibrate):
            raise UsageError(f"{'--price' if price is not None else '--calibrate'}: needs --dry-run.")
        return cls(price, calibrate, processes, on_one_machine)


@dataclass(frozen=True)
class DeviceRate:
    """Throughput of one device.

    Attributes
    ----------
    device
        Name of the device.
    adm_calls
        Images x ADM calls a second; None if unknown.
    rows
        Unit -> images a second of what is made without the ADM, as far as known; None if ``adm_calls`` includes it.
    source
        Description of where the numbers come from.
    """

    device: str
    adm_calls: float | None
    rows: Mapping[str, float] | None
    source: str


def estimate_cost(config: BuildConfig, ready: BuildPlan, cost_request: CostRequest) -> dict[str, Any]:
    """Return the cost of a plan: ``bytes`` before compression and, for each device with a known rate, hours and price.

    The measured device comes first; ``devices`` is empty if no rate is known. ``feeding`` is what decoding and writing
    can give on a machine like this one, None if that was not measured.
    """
    plan = ready.plan
    rates = known_rates(config, ready.specs, ready.cache)
    if cost_request.calibrate:
        measured = calibrate(config, ready.specs, ready.device)
        rates = [measured, *(rate for rate in rates if rate.device != measured.device)]
    fed = feeding(config, ready, cost_request.on_one_machine, measure=cost_request.calibrate)
    return {
        "bytes": sum(plan.missing[name] * layout_of(spec).bytes for name, spec in ready.specs.items()),
        "price_per_hour": cost_request.price,
        "processes": cost_request.processes,
        "feeding": None if fed is None else fed.as_json(),
        "memory": _memory(config, ready),
        "devices": [_on_device(rate, config, ready, cost_request, fed) for rate in rates],
    }


def _memory(config: BuildConfig, ready: BuildPlan) -> dict[str, Any] | None:
    """Return what each process takes if it computes on a CPU; None on a GPU, or if nothing is missing."""
    if ready.device.type != "cpu" or not ready.plan.tasks:
        return None
    decodes = ready.plan.missing["image"] and ready.originals is None
    blocks = ready.scanned.rows.blocks() if decodes else ()
    pixels = max((int((block["width"].astype(np.int64) * block["height"]).max()) for block in blocks), default=0)
    return planned_memory(config, ready.specs, config.decode_threads * decoding_bytes(pixels, 1))


def _on_device(
    rate: DeviceRate, config: BuildConfig, ready: BuildPlan, cost_request: CostRequest, fed: Feeding | None
) -> dict[str, Any]:
    plan = ready.plan
    calls = predicted_calls(plan, ready.producers)
    adm_calls = calls.pop(CALLS, 0)
    hours = device_hours(adm_calls, calls, rate.adm_calls, rate.rows)
    asked = _asked_images(rate, config, ready, hours)
    share = None
    if fed is not None and asked is not None and not rate.device.startswith("CPU "):  # which feeds itself
        share = min(1.0, fed.images_per_second / (fed.processes * asked["plan"]))
    return {
        "device": rate.device,
        "adm_calls_per_second": rate.adm_calls,
        "teacher_rows_per_second": None if rate.rows is None else rate.rows.get("teacher"),
        "rows_per_second": rate.rows,
        "source": rate.source,
        "device_hours": hours,
        "hours": None if hours is None else hours / cost_request.processes,
        "cost": None if hours is None or cost_request.price is None else hours * cost_request.price,
        "images_per_second": asked,
        "busy": share,
    }


def _asked_images(
    rate: DeviceRate, config: BuildConfig, ready: BuildPlan, hours: float | None
) -> dict[str, float] | None:
    """Return the images a second that one device takes: of this plan, of eps alone, and with DIRE; None if unknown."""
    images = sum(len({key for keys in task.missing.values() for key in keys}) for task in ready.plan.tasks)
    walk = walk_of(ready.specs)
    if walk is None or rate.adm_calls is None or not hours or not images:
        return None
    steps = used_steps(walk.adm.config.schedule(config.steps), config.real_step)
    dire = sum(map(len, steps_called(config.calls, steps)))
    return {"plan": images / (hours * 3600), "eps": rate.adm_calls, "dire": rate.adm_calls / dire}


def known_rates(config: BuildConfig, specs: Mapping[str, Spec], cache: Cache | None) -> list[DeviceRate]:
    """Return the stored rates of all devices for this model, sorted by device.

    A build's log takes precedence over a measurement: it covers more work, although its seconds include the teacher's.
    """
    rates: dict[str, DeviceRate] = {}
    rows: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for single in _singles(specs):
        for device, rate, _ in remembered(single.rate_key()):
            rows[device][single.unit] = rate
    for device, calls, date in remembered(_adm_key(config, specs)):
        rates[device] = DeviceRate(device, calls, rows[device], f"measured on {date}")
    for device, calls, source in _logged(config, specs, cache):
        rates[device] = DeviceRate(device, calls, None, source)
    return [rates[device] for device in sorted(rates)]


def calibrate(config: BuildConfig, specs: Mapping[str, Spec], device: torch.device) -> DeviceRate:
    """Measure the ADM and what else is wanted on a device, for a few seconds each, and store the rates."""
    name = device_name(device, of_machine=True)
    calls, rows = None, {}
    adm = _adm_key(config, specs)
    with arithmetic(config.precision, device):
        if adm is not None:
            calls = _measure_adm(config, specs, device)
            remember(name, adm, calls)
        for single in _singles(specs):
            rows[single.unit] = _measure_single(config, single, specs, device)
            remember(name, single.rate_key(), rows[single.unit])
    return DeviceRate(name, calls, rows, "measured now")


def _measure_adm(config: BuildConfig, specs: Mapping[str, Spec], device: torch.device) -> float:
    """Return images x calls a second, at the build's batch size unless that takes too long."""
    side = image_size(specs)
    adm = adm_on(config, device)
    size = adm_batch(config, device, adm, side, specs).size
    model = compiled(adm) if config.compile else adm

    def call(images: int) -> None:
        x = to_signal(torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, device=device))
        told = with_classes(model, config.class_label, [""] * images, device)
        with torch.inference_mode():
            told(x, torch.zeros(images, dtype=torch.int64, device=device))

    if device.type == "cpu" and _seconds(lambda: call(1), device) * size > SLOW_SECONDS:
        size = 1
    return size * _per_second(lambda: call(size), device)


def _measure_single(config: BuildConfig, producer: Single, specs: Mapping[str, Spec], device: torch.device) -> float:
    """Return images a second of a feature that is made of others."""
    model, size = network_on(producer, config, device), single_batch(config, device).size
    shapes = {feature: layout_of(specs[feature]).shape for feature in producer.reads}

    def call() -> None:
        rows = {
            feature: torch.randint(0, 256, (size, *shape), dtype=torch.uint8, device=device)
            for feature, shape in shapes.items()
        }
        producer.queue_all(model, rows, [""] * size)

    return size * _per_second(call, device)


def _per_second(call: Callable[[], None], device: torch.device) -> float:
    """Return calls a second. The first call, which may tune and compile, is not counted."""
    _seconds(call, device)
    count, spent = 0, 0.0
    while spent < MEASURE_SECONDS:
        spent += _seconds(call, device)
        count += 1
    return count / spent


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _adm_key(config: BuildConfig, specs: Mapping[str, Spec]) -> dict[str, object] | None:
    """Return what the ADM's rate depends on apart from the device; None if no feature needs the ADM."""
    walk = walk_of(specs)
    return None if walk is None else {**walk.rate_key(), "compile": config.compile}


def _singles(specs: Mapping[str, Spec]) -> list[Single]:
    """Return the producers of what is made without the ADM."""
    return [producer for producer in producers_of(specs) if isinstance(producer, Single)]


def _logged(config: BuildConfig, specs: Mapping[str, Spec], cache: Cache | None) -> Iterator[tuple[str, float, str]]:
    """Yield device, rate and source of the builds that ran this model, the newest of a feature last."""
    key = _adm_key(config, specs)
    if cache is None or key is None:
        return
    for folder in cache.feature_folders():
        try:
            store = FeatureStore(folder)
        except IntegrityError:
            continue  # a damaged feature does not concern this plan
        spec = store.spec
        adm, image = spec.get("adm"), spec.get("image")
        if not isinstance(adm, dict) or not isinstance(image, dict):
            continue
        same = {"adm": adm.get("weights"), "size": image.get("size"), "precision": spec.get("precision", "fp32")}
        for event in _events(store.folder / "log.jsonl"):
            if {**same, "compile": event.get("compile")} == key:
                yield from _speeds(event)


def _events(log: AnyPath) -> Iterator[dict[str, object]]:
    """Yield the last events of a log; lines that are not JSON objects are skipped."""
    try:
        lines = read_lines(log, _TAIL).splitlines()
    except OSError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            yield event


def _speeds(event: Mapping[str, object]) -> Iterator[tuple[str, float, str]]:
    speed, build = event.get("speed"), event.get("build")
    source = f"build {build}" if isinstance(build, str) else "a part of a build"
    for entry in speed if isinstance(speed, list) else []:
        device, calls, seconds = (entry.get(name) if isinstance(entry, dict) else None for name in _SPEED)
        if not isinstance(device, str) or type(calls) is not int or not isinstance(seconds, float):
            continue
        if 0 < calls < _MOST_CALLS and seconds > LEAST_SECONDS and is_rate(calls / seconds):
            yield device, calls / seconds, source
