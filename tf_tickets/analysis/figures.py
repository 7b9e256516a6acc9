"""Figures, without matplotlib until one is drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def new_axes(
    size: tuple[float, float] = (5, 3), columns: int = 1
) -> tuple[Any, Any]:
    """``(figure, axes)`` that no window manager knows of.

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
            "Plots need matplotlib: pip install 'tf_tickets[plots]'"
        ) from error
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, columns)


def bars(
    values: Mapping[str, float],
    label: str,
    path: str | os.PathLike[str],
    scale: str = "linear",
) -> None:
    """Draw a bar for each name, into an image file.

    Args:
        values: ``{name: height}``.
        label: What stands at the vertical axis.
        path: The image file.
        scale: The vertical axis is `"linear"`, the default, or `"log"`.
    """
    figure, axes = new_axes((max(4.0, 0.4 * len(values)), 3))
    axes.bar(range(len(values)), list(values.values()))
    axes.set_xticks(range(len(values)), list(values), rotation=90, fontsize=7)
    axes.set_ylabel(label)
    axes.set_yscale(scale)
    save(figure, path)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure to an image file; one that is there is replaced.

    Raises:
        ValueError: If ``path`` is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"`path` must name an image file. Received: path={path!r}"
        )
    figure.savefig(os.fspath(path), dpi=150)
