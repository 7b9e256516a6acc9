"""Units of work and the file of what they found.

A unit is what is measured in one go: one method with one seed and one setting,
at one or several densities. What it found is a line of a JSONL file, written
when the unit is done, in one step: a run that is killed loses the unit it was
in, and no other.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

# What was found of one network: `density`, `train_rate`, `control`, accuracies.
Row: TypeAlias = dict[str, Any]
SEARCH, FINAL = "search", "final"


@dataclasses.dataclass(frozen=True, order=True)
class Unit:
    """What a line of the file is of.

    Args:
        task: A name in `benchmarks.claims.tasks.TASKS`.
        method: A name in `benchmarks.claims.methods.METHODS`.
        split: `"search"`: looks at validation data; `"final"`: at test data.
        seed: Of weights, batches and drawing.
        densities: Shares of the weights to keep.
        setting: What the method is set to: what its search is over.
        train_rates: Learning rates of the training that comes last, one
            training each.
        options: More options of the method, ``((name, value), ...)``.
        controls: Of `tf_tickets.analysis.sanity_checks`, trained too.
        controlled: The density at which they are; 0 for all.
    """

    task: str
    method: str
    split: str
    seed: int
    densities: tuple[float, ...]
    setting: float
    train_rates: tuple[float, ...]
    options: tuple[tuple[str, Any], ...] = ()
    controls: tuple[str, ...] = ()
    controlled: float = 0.0

    @property
    def label(self) -> str:
        """The method with its options: what a search is made for."""
        return label(self.method, self.options)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Unit:
        """The unit that a line of the file says."""
        return cls(**{name: _frozen(value) for name, value in values.items()})


def label(method: str, options: Iterable[tuple[str, Any]] = ()) -> str:
    """A method with its options, as in ``"gem, epochs=60"``."""
    return ", ".join([method, *(f"{k}={v}" for k, v in options)])


class Rows:
    """What was found, by unit.

    Args:
        found: ``{unit: rows}``.
        task: The one that is asked about.
    """

    def __init__(
        self,
        found: dict[Unit, list[Row]] | None = None,
        task: str = "digits",
    ) -> None:
        self.found = {} if found is None else found
        self.task = task

    def of(self, task: str) -> Rows:
        """The same, asked about another task."""
        return Rows(self.found, task)

    def only(self, seeds: Iterable[int]) -> Rows:
        """The same, of some seeds; searches stay."""
        kept = {*seeds}
        found = {
            unit: rows
            for unit, rows in self.found.items()
            if unit.split == SEARCH or unit.seed in kept
        }
        return Rows(found, self.task)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Rows:
        """What a file has; nothing if there is none.

        A last line without an end was being written when the run was killed.
        """
        path = pathlib.Path(path)
        if not path.exists():
            return cls()
        found = {}
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                read = json.loads(line)
                found[Unit.of(read["unit"])] = read["rows"]
        return cls(found)

    def __contains__(self, unit: Unit) -> bool:
        return unit in self.found

    def add(self, unit: Unit, rows: list[Row]) -> None:
        """Add what was found of a unit."""
        self.found[unit] = rows

    def select(self, **wanted: Any) -> Iterator[tuple[Unit, Row]]:
        """Rows of units, by their fields or `label`, and by their own values.

        Args:
            **wanted: Of the unit: ``split``, ``label``, ``method``, ``seed``,
                ``setting``; of the row: anything else. A row without the value
                has `None`.
        """
        of_unit = {"split", "label", "method", "seed", "setting"}
        for unit, rows in self.found.items():
            if unit.task == self.task and all(
                getattr(unit, name) == value
                for name, value in wanted.items()
                if name in of_unit
            ):
                for row in rows:
                    if all(
                        row.get(name) == value
                        for name, value in wanted.items()
                        if name not in of_unit
                    ):
                        yield unit, row

    def values(self, number: str, **wanted: Any) -> dict[int, float]:
        """``{seed: number}`` of the final rows that fit."""
        found = {}
        for unit, row in self.select(split=FINAL, **wanted):
            if row.get(number) is not None:
                found[unit.seed] = float(row[number])
        return dict(sorted(found.items()))


def line(unit: Unit, rows: list[Row], seconds: float) -> str:
    """The line of the file."""
    made = {
        "unit": dataclasses.asdict(unit),
        "rows": rows,
        "seconds": round(seconds, 1),
    }
    return f"{json.dumps(made, default=float)}\n"


def append(path: str | os.PathLike[str], text: str) -> None:
    """Write a line to the end of a file, and past the end of a torn one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                whole = path.read_bytes().rpartition(b"\n")
                file.truncate(len(whole[0]) + len(whole[1]))
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(one) for one in value)
    return value
