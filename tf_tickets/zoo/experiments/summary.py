"""What experiments found, as a table, a CSV file and a plot."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tf_tickets import archive
from tf_tickets.figures import over_sparsity, save

Result: TypeAlias = Mapping[str, Any]
_OWN = ("method", "density", "seed")


def labels(found: Sequence[Result]) -> list[str]:
    """What to call each result: its method, and what else tells them apart.

    Args:
        found: Results, as `run` returns them.

    Example:

    >>> units = [{"method": "snip", "density": 0.1, "seed": 0},
    ...          {"method": "snip", "density": 0.1, "seed": 0, "scope": "erk"}]
    >>> labels([{"experiment": unit} for unit in units])
    ['snip', 'snip, scope=erk']
    """
    units = [dict(result["experiment"]) for result in found]
    names = list(dict.fromkeys(name for unit in units for name in unit))
    told = [
        name
        for name in names
        if name not in _OWN
        and len({json.dumps(u.get(name), sort_keys=True) for u in units}) > 1
    ]
    return [
        ", ".join(
            [
                str(unit["method"]).rpartition(":")[2],
                *(f"{n}={_short(unit[n])}" for n in told if n in unit),
            ]
        )
        for unit in units
    ]


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_short(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "+".join(map(_short, value))
    return str(value)


def write_csv(found: Iterable[Result], path: str | os.PathLike[str]) -> None:
    """Writes one row for each result, in one step.

    Args:
        found: Results, as `run` returns them.
        path: The file. It is written anew.

    Example:

    >>> import pathlib, tempfile
    >>> unit = {"method": "imp", "density": 0.1, "seed": 0}
    >>> path = f"{tempfile.mkdtemp()}/results.csv"
    >>> write_csv([{"experiment": unit, "test_accuracy": 0.9}], path)
    >>> print(pathlib.Path(path).read_text().strip())
    method,asked_density,seed,test_accuracy
    imp,0.1,0,0.9
    """
    rows = []
    for result in found:
        unit = dict(result["experiment"])
        # What was asked for, beside what came of it.
        own = {
            "method": unit.pop("method"),
            "asked_density": unit.pop("density"),
            "seed": unit.pop("seed"),
        }
        rest = {k: v for k, v in result.items() if k != "experiment"}
        rows.append({**own, **unit, **rest})
    rows.sort(key=lambda r: (str(r["method"]), -r["asked_density"], r["seed"]))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (
        archive.replacing(path) as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(
            {
                name: json.dumps(value)
                if isinstance(value, dict | list)
                else value
                for name, value in row.items()
            }
            for row in rows
        )


def summarize(
    found: Sequence[Result], metric: str = "test_accuracy"
) -> list[dict[str, Any]]:
    """Mean and spread over the seeds.

    Args:
        found: Results, as `run` returns them.
        metric: Which number; `"test_accuracy"` by default.

    Returns:
        One row for each method, as `labels` calls it, and density that was
        asked for: ``method``, ``density``, ``runs``, ``mean``, ``std`` (that
        of a sample; 0 for one run) and ``values``, by seed. Results without
        that number are left out.

    Example:

    >>> found = [
    ...     {"experiment": {"method": "imp", "density": 0.1, "seed": seed},
    ...      "test_accuracy": 0.9 + seed / 10} for seed in (0, 1)]
    >>> [row] = summarize(found)
    >>> round(row["mean"], 2), round(row["std"], 4), row["runs"]
    (0.95, 0.0707, 2)
    """
    groups: dict[tuple[str, float], dict[int, float]] = {}
    for label, result in zip(labels(found), found, strict=True):
        unit = result["experiment"]
        if result.get(metric) is not None:
            key = label, float(unit["density"])
            groups.setdefault(key, {})[unit["seed"]] = float(result[metric])
    return [
        {
            "method": label,
            "density": density,
            "runs": len(values),
            "mean": float(np.mean(list(values.values()))),
            "std": float(np.std(list(values.values()), ddof=1))
            if len(values) > 1
            else 0.0,
            "values": dict(sorted(values.items())),
        }
        for (label, density), values in sorted(
            groups.items(), key=lambda item: (item[0][0], -item[0][1])
        )
    ]


def plot(
    found: Sequence[Result],
    path: str | os.PathLike[str],
    metric: str = "test_accuracy",
) -> None:
    """Draws a number over the sparsity, with error bars, a line a method.

    Bars are one standard deviation over the seeds. The dense network is a
    dashed line, in a band of its own deviation.

    Args:
        found: Results, as `run` returns them.
        path: The image file.
        metric: Which number; `"test_accuracy"` by default.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If no result has that number.
    """
    rows = summarize(found, metric)
    if not rows:
        raise ValueError(
            f"No result has this number. Received: metric={metric!r}"
        )
    runs: dict[str, dict[float, list[float]]] = {}
    dense = {}
    for row in rows:
        values = list(row["values"].values())
        if row["density"] == 1:
            dense[row["method"]] = values
        else:
            runs.setdefault(row["method"], {})[row["density"]] = values
    axes = over_sparsity(runs, metric.replace("_", " "), dense=dense)
    counts = {row["runs"] for row in rows}
    many = " to ".join(map(str, sorted({min(counts), max(counts)})))
    axes.set_title(
        "one run each"
        if counts == {1}
        else f"mean ± standard deviation, {many} runs each",
        fontsize=9,
    )
    path = Path(path)
    with archive.replacing(path) as temporary:
        # The writer goes by the ending, which the place to write has not.
        image = temporary.with_name(f"plot{path.suffix or '.png'}")
        save(axes.figure, image)
        os.replace(image, temporary)
