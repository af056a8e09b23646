"""The chart of the first screen: AP by generator with its intervals, configurations side by side."""

from __future__ import annotations

from collections.abc import Sequence

from ...metrics.measures import Interval
from ..verdict import SEEN, UNKNOWN, UNSEEN, GeneratorAP, Place, Standing
from ..wording import bounds, generator_title, percent
from .panels import SERIES, Dot, Figure, Panel, dots_panel

_TITLES = {UNSEEN: "Unseen generators", SEEN: "Seen generators", UNKNOWN: "Generators"}


def overview_figure(standings: Sequence[Standing]) -> Figure | None:
    """Plot the AP of the best configurations, one panel a group of generators; None without a standing."""
    if not standings:
        return None
    ranked = {place.name: place for one in standings for place in one.places}
    shown = {name: series for series, name in enumerate(list(ranked)[:SERIES])}
    x_range = _range([place for one in standings for place in one.places if place.name in shown])
    panels = tuple(_panel(one, shown, x_range) for one in standings)
    left_out = len(ranked) - len(shown)
    caption = "AP by test generator, higher is better. Lines are 95 % intervals over test images"
    caption += "; small dots are single seeds." if any(len(place.runs) > 1 for place in ranked.values()) else "."
    caption += f" {left_out} further configurations are in the tables." if left_out else ""
    return Figure(caption, panels, tuple(shown))


def _panel(standing: Standing, shown: dict[str, int], x_range: Interval) -> Panel:
    places = sorted(
        (place for place in standing.places if place.name in shown),
        key=lambda place: shown[place.name],
    )
    rows = {
        generator_title(name): [_generator_dot(shown[place.name], place.generators[name]) for place in places]
        for name in standing.generators
    }
    if len(standing.generators) > 1:
        rows["mean"] = [_dot(shown[place.name], place.ap.mean, place.interval) for place in places]
    names = {shown[place.name]: place.name for place in places}
    alt = "; ".join(
        f"{row}: {', '.join(_described(names[dot.series], dot) for dot in dots)}" for row, dots in rows.items()
    )
    return dots_panel(_TITLES[standing.group], f"{alt}.", rows, "AP in percent", x_range)


def _generator_dot(series: int, one: GeneratorAP) -> Dot:
    return _dot(series, one.ap.mean, one.interval, one.by_seed)


def _dot(series: int, value: float | None, interval: Interval | None, by_seed: Sequence[float] = ()) -> Dot:
    within = None if interval is None else Interval(100 * interval.low, 100 * interval.high)
    parts = [100 * one for one in by_seed] if len(by_seed) > 1 else []
    return Dot(series, 100 * (value or 0.0), within, parts)


def _described(name: str, dot: Dot) -> str:
    within = f" ({bounds(dot.interval, 1.0)})" if dot.interval else ""
    return f"{name} {percent(dot.value / 100)}{within}"


def _range(places: Sequence[Place]) -> Interval:
    """Return a common range of the x axes: from just below the lowest value to just above the highest."""
    ends = [
        100 * value
        for place in places
        for one in place.generators.values()
        for value in (*one.by_seed, *(one.interval or ()))
    ]
    margin = max(1.0, 0.04 * (max(ends) - min(ends)))
    return Interval(min(ends) - margin, max(ends) + margin)
