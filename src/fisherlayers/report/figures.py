"""Figures of reports as SVG bytes: loss curves, bars, and grids of images with predictions.

Matplotlib is used through its `Figure` objects, without pyplot and without global settings. Names are shown as they
are: a dollar in one begins no formula.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

COLOURS = ("#1f5f8b", "#c8553d", "#4f8a4f", "#7a5c99", "#b08a2e", "#5b6770")
INK = "#1f2933"
SOFT = "#5b6770"
LINE = "#d9dee3"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "svg.hashsalt": "fisherlayers",
}


@dataclass(frozen=True)
class Curve:
    """A line: name, x and y values, and its look.

    Attributes:
        name: in the legend.
        x: values along the axis.
        y: values; those that are not finite leave a gap.
        group: lines of one group share a colour.
        dashed: drawn dashed.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    group: str
    dashed: bool = False


def curves(
    panels: Mapping[str, Sequence[Curve]], *, xlabel: str | Sequence[str], ylabel: str, log_y: bool = True
) -> bytes:
    """Draw panels of curves side by side, with one legend.

    Args:
        panels: title -> its curves.
        xlabel: of all panels, or one a panel.
        ylabel: of the first panel.
        log_y: logarithmic vertical axes.

    Returns:
        An SVG document.

    Raises:
        ValueError: no panel, or not one label a panel.
    """
    if not panels:
        raise ValueError("panels is empty: give at least one title -> curves")
    labels = [xlabel] * len(panels) if isinstance(xlabel, str) else list(xlabel)
    if len(labels) != len(panels):
        raise ValueError(f"xlabel must be one text or one a panel ({len(panels)}); got {labels}")
    groups = dict.fromkeys(curve.group for panel in panels.values() for curve in panel)
    colours = {group: COLOURS[index % len(COLOURS)] for index, group in enumerate(groups)}
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, label, (title, panel) in zip(grid, labels, panels.items(), strict=True):
            for curve in panel:
                style = {"linestyle": "--" if curve.dashed else "-", "linewidth": 1.6}
                axes.plot(curve.x, _gaps(curve.y), color=colours[curve.group], **style)
            if log_y:
                axes.set_yscale("log")
            axes.set_title(title, parse_math=False)
            axes.set_xlabel(label, parse_math=False)
            axes.grid(axis="y", color=LINE, linewidth=0.6)
        grid[0].set_ylabel(ylabel, parse_math=False)
        handles = grid[0].get_lines()
        # Names come after the entries are made: matplotlib leaves out those that are empty or begin with "_".
        legend = figure.legend(handles, ["name"] * len(handles), loc="outside lower center", ncols=min(len(handles), 3))
        for text, curve in zip(legend.get_texts(), next(iter(panels.values())), strict=True):
            text.set(text=curve.name, parse_math=False)
        return svg_bytes(figure)


def _gaps(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def bars(
    values: Mapping[str, float],
    *,
    xlabel: str,
    highlight: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
) -> bytes:
    """Draw horizontal bars, the first at the top, each with its number.

    Args:
        values: name -> length.
        xlabel: what the length is, with its unit.
        highlight: names of the bars that stand out; none for all alike.
        limits: of the axis.

    Returns:
        An SVG document.

    Raises:
        ValueError: no bar, or an unknown name to highlight.
    """
    if not values:
        raise ValueError("values is empty: give at least one name -> length")
    if unknown := set(highlight) - set(values):
        raise ValueError(f"highlight names no bar: {sorted(unknown)}; the bars are {list(values)}")
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.42 * len(values) + 0.9), layout="constrained")
        axes = figure.subplots()
        chosen = set(highlight) or set(values)
        places = range(len(values))
        container = axes.barh(
            places, list(values.values()), color=[COLOURS[0] if name in chosen else "#a9b7c1" for name in values]
        )
        axes.set_yticks(places, list(values), parse_math=False)
        axes.bar_label(container, fmt="{:.4g}", padding=4, color=INK)
        axes.invert_yaxis()
        axes.set_xlabel(xlabel, parse_math=False)
        axes.set(xlim=limits)
        axes.margins(x=0.12)
        axes.tick_params(axis="y", length=0)
        return svg_bytes(figure)


def image_grid(
    images: Sequence[ArrayLike],
    predicted: Sequence[str],
    actual: Sequence[str],
    *,
    columns: int = 8,
) -> bytes:
    """Draw images in a grid with the predicted class above each; a wrong one is red, with the right one in brackets.

    Args:
        images: (height, width) grey or (height, width, 3) RGB each, uint8 or in [0, 1].
        predicted: one class name an image.
        actual: one class name an image.
        columns: images a row.

    Returns:
        An SVG document.

    Raises:
        ValueError: no image, or not one name an image.
    """
    if not len(images) or not len(images) == len(predicted) == len(actual):
        raise ValueError(
            f"expected one predicted and one actual name for each of one or more images; "
            f"got {len(images)} images, {len(predicted)} and {len(actual)} names"
        )
    rows = -(-len(images) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.25 * columns, 1.6 * rows), layout="constrained")
        cells = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in cells:
            axes.set_axis_off()
        for axes, image, guess, truth in zip(cells, images, predicted, actual, strict=False):
            _show(axes, np.asarray(image), guess, truth)
        return svg_bytes(figure)


def _show(axes: Axes, image: NDArray[Any], guess: str, truth: str) -> None:
    limit = 255 if image.dtype == np.uint8 else 1
    axes.imshow(image, cmap="gray", vmin=0, vmax=limit, interpolation="nearest")
    right = guess == truth
    title = guess if right else f"{guess}\n({truth})"
    axes.set_title(title, fontsize=7, color=SOFT if right else COLOURS[1], pad=3, parse_math=False)


def svg_bytes(figure: Figure) -> bytes:
    """Return a figure as an SVG document; equal figures give equal bytes.

    Args:
        figure: drawn under `STYLE`.

    Returns:
        The document.
    """
    buffer = io.BytesIO()
    # No date and no other metadata.
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()
