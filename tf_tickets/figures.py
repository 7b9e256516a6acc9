"""Figures, without matplotlib until one is drawn.

Whatever can be plotted has ``plot(path=None, *, axes=None)``: it draws into an
image file, on axes of yours, or both, and returns the axes.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Path = str | os.PathLike[str]

# Of what everything else is compared with.
_PALE = "0.55"


def new_axes(
    size: tuple[float, float] = (5, 3), columns: int = 1
) -> tuple[Any, Any]:
    """``(figure, axes)`` that no window manager knows of; a notebook shows it.

    Args:
        size: Width and height in inches.
        columns: How many axes side by side; more than one come as an array.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib: pip install 'matplotlib>=3.8'"
        ) from error
    make: Any = Figure
    if _is_notebook():
        # What pyplot knows of is shown below the cell.
        from matplotlib import pyplot

        make = pyplot.figure
    figure = make(figsize=size, layout="constrained")
    return figure, figure.subplots(1, columns)


def _is_notebook() -> bool:
    """Whether a kernel runs this that shows pictures beside the code."""
    return "ipykernel" in sys.modules and "inline" in os.environ.get(
        "MPLBACKEND", ""
    )


def axes_or_new(axes: Any, size: tuple[float, float] = (5, 3)) -> Any:
    """The axes that were given, or new ones if that is `None`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If these are no axes.
    """
    if axes is None:
        return new_axes(size)[1]
    if not hasattr(axes, "imshow"):
        raise ValueError(
            f"`axes` must be matplotlib axes. Received: axes={axes!r}"
        )
    return axes


def save(figure: Any, path: Path | None) -> None:
    """Write a figure to an image file, if there is a path; it is replaced.

    Raises:
        ValueError: If ``path`` is no path.
    """
    if path is None:
        return
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"`path` must name an image file. Received: path={path!r}"
        )
    figure.savefig(os.fspath(path), dpi=150)


def bars(
    values: Mapping[str, float],
    label: str,
    path: Path | None = None,
    *,
    axes: Any = None,
    form: Callable[[float], str] | str = "{:.3g}",
    spread: Mapping[str, tuple[float, float]] | None = None,
) -> Any:
    """A bar for each name, from zero, with its value; the first at the top.

    Args:
        values: ``{name: length}``.
        label: What the length is.
        path: An image file to write, or `None`.
        axes: Matplotlib axes to draw on; a new figure if `None`.
        form: How a value is written beside its bar: a format or a function.
        spread: ``{name: (below, above)}``: how far whiskers go from the end
            of a bar.

    Returns:
        The axes.

    Example:

    >>> axes = bars({"one": 0.5, "two": 2.0}, "norm")
    >>> [text.get_text() for text in axes.texts]
    ['0.5', '2']
    """
    axes = axes_or_new(axes, (6, max(1.5, 0.6 + 0.24 * len(values))))
    write = form.format if isinstance(form, str) else form
    made = axes.barh(
        range(len(values)),
        list(values.values()),
        height=0.7,
        xerr=np.transpose([spread[name] for name in values])
        if spread and values
        else None,
        capsize=2,
    )
    labels = axes.bar_label(
        made, [write(v) for v in values.values()], padding=3, fontsize=8
    )
    for text in labels:  # readable over a line that runs through
        text.set_bbox({"fc": "w", "ec": "none", "pad": 0.5})
    axes.set_yticks(range(len(values)), list(values), fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    save(axes.figure, path)
    return axes


def over_sparsity(
    runs: Mapping[str, Mapping[float, float | Sequence[float]]],
    label: str,
    path: Path | None = None,
    *,
    dense: float | Sequence[float] | Mapping[str, Any] | None = None,
    axes: Any = None,
) -> Any:
    """Lines over sparsity, the denser the further left.

    Args:
        runs: ``{name: {density: value}}``. Several values, of several seeds
            say, are drawn as their mean with their standard deviation, those
            of several names side by side.
        label: What the values are.
        path: An image file to write, or `None`.
        dense: The value of the dense network: a dashed line across, in a band
            of the standard deviation if there are several; of several dense
            networks ``{name: value}``.
        axes: Matplotlib axes to draw on; a new figure if `None`.

    Returns:
        The axes. Horizontal positions are densities, on a logarithmic scale;
        their labels are sparsities.

    Example:

    >>> axes = over_sparsity(
    ...     {"ticket": {1.0: 0.9, 0.5: 0.92, 0.25: [0.8, 0.9]}}, "accuracy",
    ...     dense=0.9)
    >>> [text.get_text() for text in axes.get_xticklabels()]
    ['0%', '50%', '75%']
    """
    many = len(runs) > 5
    axes = axes_or_new(axes, (7.5, 4.5) if many else (6, 3.6))
    if not isinstance(dense, Mapping):
        dense = {} if dense is None else {"dense": dense}
    for name, value in dense.items():
        mean, std = _mean_and_std(value)
        axes.axhline(mean, color=_PALE, ls="--", lw=1, label=name)
        if std:
            axes.axhspan(mean - std, mean + std, color=_PALE, alpha=0.15, lw=0)
    ticks = sorted({d for points in runs.values() for d in points})[::-1]
    span = np.log(ticks[0] / ticks[-1]) if ticks else 0.0
    for index, (name, points) in enumerate(runs.items()):
        densities = sorted(points, reverse=True)
        means, spread = np.transpose(
            [_mean_and_std(points[density]) for density in densities]
        )
        # Side by side, so that whiskers at one density do not hide another.
        is_moved = len(runs) > 1 and any(spread)
        beside = 2 * index / (len(runs) - 1) - 1 if is_moved else 0.0
        shift = np.exp(0.012 * span * beside)
        axes.errorbar(
            np.multiply(densities, shift),
            means,
            yerr=spread if any(spread) else None,
            color=f"C{index % 10}",
            marker="os^Dv*XP"[index % 8],
            ls=("-", "--", ":", "-.")[index // 10 % 4],
            ms=4,
            lw=1.3,
            capsize=2,
            # A long one would leave no room for the axes.
            label=textwrap.fill(name, 32),
        )
    if ticks:
        sparsity_axis(axes, ticks)
    axes.set_ylabel(label)
    if many:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    elif axes.get_legend_handles_labels()[1]:
        axes.legend()
    save(axes.figure, path)
    return axes


def _mean_and_std(value: float | Sequence[float]) -> tuple[float, float]:
    values = np.atleast_1d(value)
    return values.mean(), values.std(ddof=1) if values.size > 1 else 0.0


def sparsity_axis(axes: Any, densities: Sequence[float]) -> None:
    """Make the horizontal axis one of densities, labelled by sparsity.

    Args:
        axes: Matplotlib axes.
        densities: What is drawn there, from dense to sparse. Labels that
            would run into their neighbours are left out.
    """
    axes.set_xscale("log")
    span = np.log(max(densities) / min(densities)) or 1.0
    ticks: list[float] = []
    # From the sparsest, which is what a figure is about.
    for density in sorted(densities):
        if not ticks or np.log(density / ticks[-1]) > span / 9:
            ticks.append(density)
    if ticks[-1] != max(densities) and len(ticks) > 1:
        ticks[-1] = max(densities)  # and the densest in any case
    if not axes.xaxis_inverted():
        axes.invert_xaxis()
    axes.set_xticks(ticks[::-1], [_percent(1 - tick) for tick in ticks[::-1]])
    axes.minorticks_off()
    axes.set_xlabel("sparsity")
    axes.grid(alpha=0.25)


def _percent(sparsity: float) -> str:
    """As short as tells it from 100 %."""
    for digits in range(4):
        text = f"{100 * sparsity:.{digits}f}"
        if abs(float(text) - 100 * sparsity) < 0.04 * (100 - 100 * sparsity):
            break
    return f"{text}%"
