"""The report's figures: small matplotlib panels as inline SVG in the page's colours.

A figure is a row of panels that the page wraps to its width, so that text stays readable on a phone. Colours are CSS
variables, so the page decides on light or dark. Every series also has its own dash pattern, and text stays text. The
same data give the same bytes: the hash salt is fixed, there is no date, and the caller prefixes the ids.
"""

from __future__ import annotations

import base64
import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from ...metrics.calibration import Bin
from ...metrics.measures import Array, Interval

SERIES = 6
"""Number of colours."""

MAX_WITH_BARS = 4
"""Most series of a reliability diagram that are drawn with their intervals."""

_MARKERS = "osD^vP"
DASHES = ("", "6 2", "2 2", "6 2 2 2")
_INK, _RULE = "#fe1000", "#fe2000"  # placeholders for currentColor and a CSS variable
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "distil-cache",
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.5,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.4,
}


@dataclass(frozen=True)
class Panel:
    """One panel of a figure.

    Attributes
    ----------
    title : str
    alt : str
        Text alternative: what the panel shows.
    svg : str
        Inline SVG element; empty if ``image`` is set.
    image : str
        Data URI.
    """

    title: str
    alt: str
    svg: str = ""
    image: str = ""


@dataclass(frozen=True)
class Figure:
    """Panels with a common caption; ``legend`` names the series in the order of their colours."""

    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Curve:
    """The points of one line; ``series`` is its index in the legend, which decides its colour and dash pattern."""

    series: int
    x: Sequence[float] | Array
    y: Sequence[float] | Array


@dataclass(frozen=True)
class Spread:
    """One row of a distribution plot: its label, values, the interval of their mean, and its index in the legend."""

    label: str
    values: npt.NDArray[np.float64]
    interval: Interval | None
    series: int


@dataclass(frozen=True)
class Dot:
    """A value with its interval in a dot plot, and the ``parts`` that it is the mean of; ``series`` is as in `Curve`."""

    series: int
    value: float
    interval: Interval | None
    parts: Sequence[float] = ()


def png_panel(title: str, alt: str, png: bytes) -> Panel:
    """Return a panel that embeds a PNG."""
    return Panel(title, alt, image="data:image/png;base64," + base64.b64encode(png).decode("ascii"))


def line_panel(
    title: str,
    alt: str,
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    ticks: Mapping[float, str] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Panel:
    """Draw lines over integers, such as epochs; a line of a single point is a dot.

    Parameters
    ----------
    title, alt : str
        Title and text alternative of the panel, in all functions of this module.
    curves : sequence of Curve
    x_label, y_label : str
    ticks : Mapping, optional
        Position on the x axis -> its label; every point is then marked by a dot.
    y_range : tuple of float, optional
        Limits of the y axis, to compare panels.
    """

    def draw(axes: Axes) -> None:
        for curve in curves:
            dots = ticks is not None or len(curve.x) == 1
            axes.plot(curve.x, curve.y, marker="o" if dots else "", markersize=3, **_line(curve.series))
        if ticks is None:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        else:
            axes.set_xticks(list(ticks), list(ticks.values()))
        if y_range is not None:
            axes.set_ylim(y_range)
        axes.set(xlabel=x_label, ylabel=y_label)

    return _panel(title, alt, draw)


def roc_panel(title: str, alt: str, scored: Mapping[int, tuple[Array, Array]]) -> Panel:
    """Draw ROC curves; ``scored`` holds labels and scores, (N,) each, by series."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_RULE, linewidth=1)
        for series, (labels, scores) in scored.items():
            false_positive, true_positive, _ = roc_curve(labels, scores)
            axes.plot(false_positive, true_positive, **_line(series))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="false positive rate", ylabel="true positive rate")

    return _panel(title, alt, draw)


def pr_panel(title: str, alt: str, scored: Mapping[int, tuple[Array, Array]]) -> Panel:
    """Draw precision-recall curves by series, and the share of generated images as the level of chance."""

    def draw(axes: Axes) -> None:
        for series, (labels, scores) in scored.items():
            precision, recall, _ = precision_recall_curve(labels, scores, drop_intermediate=True)
            axes.axhline(float(np.mean(labels == 1)), color=_RULE, linewidth=1)
            axes.step(recall, precision, where="post", **_line(series))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="recall", ylabel="precision")

    return _panel(title, alt, draw)


def reliability_panel(title: str, alt: str, binned: Mapping[int, Sequence[Bin]]) -> Panel:
    """Draw the share of generated images against the mean score of each bin, by series.

    Larger dots hold more images. Bars are intervals; above ``MAX_WITH_BARS`` series they would hide one another and are
    left out.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_RULE, linewidth=1)
        for series, bins in binned.items():
            means, shares = [one.mean_score for one in bins], [one.share for one in bins]
            total = sum(one.images for one in bins)
            if len(binned) <= MAX_WITH_BARS:
                ends = np.asarray([one.interval for one in bins]).T
                axes.vlines(means, *ends, color=_colour(series), linewidth=0.8, alpha=0.6)
            axes.plot(means, shares, **_line(series))
            axes.scatter(
                means, shares, s=[6 + 60 * one.images / total for one in bins], color=_colour(series), zorder=3
            )
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="mean score of the bin", ylabel="share of generated")

    return _panel(title, alt, draw)


def histogram_panel(title: str, alt: str, scores: Mapping[int, Array], validated: float | None = None) -> Panel:
    """Draw histograms of scores in 20 bins from 0 to 1, by series; series 0 is filled.

    A line marks the threshold 0.5, a dashed line the one chosen on validation (``validated``).
    """

    def draw(axes: Axes) -> None:
        edges = np.linspace(0, 1, 21)
        for series, values in scores.items():
            shares = np.histogram(np.clip(values, 0, 1), edges)[0] / max(1, len(values))
            if series == 0:
                axes.stairs(shares, edges, fill=True, color=_colour(series), alpha=0.3)
            axes.stairs(shares, edges, **_line(series))
        axes.axvline(0.5, color=_INK, linewidth=0.8)
        if validated is not None:
            axes.axvline(validated, color=_INK, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set(xlim=(-0.01, 1.01), xlabel="score (probability of generated)", ylabel="share of images")

    return _panel(title, alt, draw)


def spread_panel(title: str, alt: str, rows: Sequence[Spread], x_label: str) -> Panel:
    """Draw a distribution per row: line from 5th to 95th percentile, box of the quartiles, mean and its interval."""

    def draw(axes: Axes) -> None:
        for y, row in enumerate(rows):
            colour = _colour(row.series)
            low, first, third, high = np.percentile(row.values, (5, 25, 75, 95))
            axes.plot([low, high], [y, y], color=colour, linewidth=1)
            axes.barh(y, third - first, left=first, height=0.5, color=colour, alpha=0.35)
            if row.interval:
                axes.plot(row.interval, [y, y], color=_INK, linewidth=2.6)
            axes.plot(float(np.mean(row.values)), y, marker="o", markersize=4.5, color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.set(yticks=range(len(rows)), yticklabels=[_short(row.label) for row in rows], xlabel=x_label)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")

    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=(3.9, 0.75 + 0.34 * len(rows)), layout="constrained")
        draw(canvas.add_subplot())
        return Panel(title, alt, _svg(canvas, f"{title}: {alt}"))


def dots_panel(title: str, alt: str, rows: Mapping[str, Sequence[Dot]], x_label: str, x_range: Interval) -> Panel:
    """Draw rows of values with their intervals, the series of a row below one another, and parts as small dots."""
    most = max(map(len, rows.values()))
    step = 0.8 / most

    def draw(axes: Axes) -> None:
        for number, dots in enumerate(rows.values()):
            for place, dot in enumerate(dots):
                y = number + (place - (len(dots) - 1) / 2) * step
                if dot.interval:
                    axes.plot(dot.interval, [y, y], **_line(dot.series))
                axes.plot(dot.parts, [y] * len(dot.parts), "o", markersize=2.2, color=_INK)
                axes.plot(dot.value, y, _MARKERS[dot.series % SERIES], markersize=5, color=_colour(dot.series))
            if number:
                axes.axhline(number - 0.5, color=_RULE, linewidth=0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set(yticks=range(len(rows)), yticklabels=[_short(name) for name in rows], xlabel=x_label, xlim=x_range)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")

    with mpl.rc_context(_STYLE):
        height = 0.5 + len(rows) * (0.16 + 0.15 * most)
        canvas = Canvas(figsize=(3.9, height))
        draw(canvas.add_axes((0.33, 0.45 / height, 0.65, 1 - 0.5 / height)))  # the axes of several panels align
        return Panel(title, alt, _svg(canvas, f"{title}: {alt}"))


def with_prefix(figure: Figure, prefix: str) -> Figure:
    """Prefix the ids of a figure's SVG, so that they are unique on a page."""
    panels = []
    for number, panel in enumerate(figure.panels):
        own = f"{prefix}-{number}-"
        svg = re.sub(r'\bid="', f'id="{own}', panel.svg)
        svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{own}", svg)
        panels.append(Panel(panel.title, panel.alt, svg, panel.image))
    return Figure(figure.caption, tuple(panels), figure.legend)


def _panel(title: str, alt: str, draw: Callable[[Axes], None]) -> Panel:
    """Draw a panel whose size and axes position are fixed, so that panels side by side align."""
    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=(3.5, 2.6))
        draw(canvas.add_axes((0.175, 0.17, 0.8, 0.8)))
        return Panel(title, alt, _svg(canvas, f"{title}: {alt}"))


def _line(series: int) -> dict[str, Any]:
    dash = DASHES[series % len(DASHES)]
    # matplotlib scales dashes by the line's width; the pattern is in points
    return {"color": _colour(series), "linestyle": (0, tuple(float(n) / 1.4 for n in dash.split())) if dash else "-"}


def _colour(series: int) -> str:
    return f"#fe00{series % SERIES:02x}"


def _short(label: str) -> str:
    return label if len(label) <= 20 else label[:19] + "…"


def _svg(canvas: Canvas, label: str) -> str:
    """Return the drawing as one ``<svg>`` element in the page's colours, without prologue, metadata or fixed size."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # text stays text: the page's fonts have the glyphs
        canvas.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace("xlink:href=", "href=")
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<defs>\s*<style.*?</defs>", "", text, count=1, flags=re.DOTALL)
    text = text.replace(_INK, "currentColor").replace(_RULE, "var(--rule)")
    text = re.sub(r' (d|x|y|transform)="[^"]*"', lambda found: _rounded(found[0]), text)
    text = re.sub(r"#fe00(\d\d)", lambda found: f"var(--s{int(found[1])})", text)
    box = re.search(r'viewBox="[^"]+"', text)
    if box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    opening = f'<svg {box[0]} role="img" aria-label="{html.escape(label, quote=True)}">'
    return opening + text[text.index(">") + 1 :].strip()


def _rounded(attribute: str) -> str:
    """Round coordinates to 0.01 point, which is finer than the eye sees and halves the size."""
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", attribute)
