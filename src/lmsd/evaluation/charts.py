"""Curves of a run as inline SVG, drawn by matplotlib, with the page's own font and no link to anything."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLORS: Mapping[str, str] = {"generator": "#1f6fd0", "discriminator": "#d9630d"}
_OTHERS = ("#1f6fd0", "#d9630d", "#2a8c5a", "#8a4fbf", "#7a7a7a")
_POINTS = 300


@dataclass(frozen=True)
class Curve:
    """One line: y over images seen, with an interval where there is one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False


def draw(curves: Sequence[Curve], *, anchor: str = "chart", over: str = "images seen") -> str:
    """An <svg> of the curves; log scale where positive values span a factor above 30.

    over: label of the x axis, whose values are all named unless they are images seen;
    anchor: makes the ids inside this SVG different from those of others on the page.
    """

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0.17, 0.18, 0.81, 0.79))  # a computed layout would draw everything twice
        for place, curve in enumerate(curves):
            _line(axes, curve, COLORS.get(curve.name, _OTHERS[place % len(_OTHERS)]))
        _dress(axes, curves, over)

    return _svg((4.6, 2.7), paint, anchor)


def stacked(curves: Sequence[Curve], *, anchor: str = "chart") -> str:
    """An <svg> of curves of different units above one another, over the same images seen, named each."""
    height = 0.55 + 1.25 * len(curves)

    def paint(figure: Any) -> None:
        panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        figure.subplots_adjust(0.17, 0.47 / height, 0.98, 1 - 0.25 / height, hspace=0.35)
        for place, (axes, curve) in enumerate(zip(panels, curves, strict=True)):
            _line(axes, curve, _OTHERS[place % len(_OTHERS)])
            _dress(axes, [curve], "images seen" if place == len(curves) - 1 else "", linear=True)
            axes.set_title(curve.name, loc="left", fontsize=9, pad=3)

    return _svg((4.6, height), paint, anchor)


def _svg(size: tuple[float, float], paint: Callable[[Any], None], anchor: str) -> str:
    """What is painted on a figure of this size, as an element of a page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": anchor,
        "font.size": 10,
        "axes.edgecolor": "#9aa0a6",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size)
        paint(figure)
        target = io.StringIO()
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(target, format="svg", transparent=True, metadata=empty)
    return _inline(target.getvalue())


def _line(axes: Any, curve: Curve, color: str) -> None:
    x, y = (np.asarray(values, dtype=float) for values in (curve.x, curve.y))
    few = len(x) <= 30
    if len(x) > _POINTS and curve.low is None:
        x, y = _binned(x), _binned(y)
    marker = "o" if few and not curve.dashed else ""
    axes.plot(
        x, y, color=color, lw=1.6, ls="--" if curve.dashed else "-", marker=marker, ms=3, label=curve.name
    )
    if curve.low is not None and curve.high is not None:
        axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.18, lw=0)


def _binned(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Means of at most 300 pieces of equal length."""
    return np.array([piece.mean() for piece in np.array_split(values, _POINTS)])


def _dress(axes: Any, curves: Sequence[Curve], over: str, *, linear: bool = False) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    values = np.concatenate([np.asarray(curve.y, dtype=float) for curve in curves])
    if not linear and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
    if over in ("images seen", ""):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted({x for curve in curves for x in curve.x})))
        axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_xlabel(over, color="#5f6368")
    axes.tick_params(colors="#5f6368")
    axes.grid(visible=True, color="#e4e6e9", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9, loc="best")


def short(value: float) -> str:
    """1234567 → "1.23M", 45000 → "45k"."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def _inline(svg: str) -> str:
    """The <svg> element alone: no prolog, no metadata, fonts of the page, width by the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("'DejaVu Sans'", "system-ui")
