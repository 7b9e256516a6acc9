"""What a ticket and its controls reached."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_tickets.analysis.figures import new_axes, save


@dataclasses.dataclass(frozen=True)
class SanityReport:
    """What a ticket reached, and what its controls did.

    Attributes:
        ticket: Accuracy of the ticket, one a seed.
        controls: ``{control: accuracies}``, one a seed.
        seeds: The seeds.
        threshold: How far below the ticket's mean a control's must lie.
        density: Of the ticket and of every control.
        skipped: ``{control: why it was not run}``.

    Example:

    >>> report = SanityReport((0.9, 0.8), {"shuffle": (0.6, 0.7)}, (0, 1))
    >>> report.passed, round(report.gaps["shuffle"], 3)
    (True, 0.2)
    >>> print(report)
    Sanity checks at density 1.0000, 2 seeds, threshold 0.0100
    run               mean      std      gap  verdict
    ticket          0.8500   0.0707
    shuffle         0.6500   0.0707   0.2000  falls
    The ticket passes: it is better than every control.
    """

    ticket: tuple[float, ...]
    controls: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    threshold: float = 0.01
    density: float = 1.0
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """``{run: mean over the seeds}``, the ticket among them."""
        return {k: float(np.mean(v)) for k, v in self._runs().items()}

    @property
    def spreads(self) -> dict[str, float]:
        """``{run: standard deviation over the seeds}``; 0 for one seed."""
        return {
            k: float(np.std(v, ddof=1)) if len(v) > 1 else 0.0
            for k, v in self._runs().items()
        }

    @property
    def gaps(self) -> dict[str, float]:
        """``{control: mean of the ticket − mean of the control}``."""
        means = self.means
        return {name: means["ticket"] - means[name] for name in self.controls}

    @property
    def verdicts(self) -> dict[str, bool]:
        """``{control: whether accuracy falls by more than the threshold}``."""
        return {name: gap > self.threshold for name, gap in self.gaps.items()}

    @property
    def passed(self) -> bool:
        """Whether accuracy falls under every control that was run."""
        return all(self.verdicts.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "ticket": list(self.ticket),
            "controls": {k: list(v) for k, v in self.controls.items()},
            "seeds": list(self.seeds),
            "threshold": self.threshold,
            "density": self.density,
            "skipped": dict(self.skipped),
            "means": self.means,
            "spreads": self.spreads,
            "gaps": self.gaps,
            "verdicts": self.verdicts,
            "passed": self.passed,
        }

    def render(self) -> str:
        """A table as text."""
        count = len(self.seeds)
        lines = [
            f"Sanity checks at density {self.density:.4f}, {count} "
            f"seed{'s' * (count != 1)}, threshold {self.threshold:.4f}",
            f"{'run':<13}{'mean':>9}{'std':>9}{'gap':>9}  verdict",
        ]
        means, spreads, gaps = self.means, self.spreads, self.gaps
        for name in means:
            row = f"{name:<13}{means[name]:>9.4f}{spreads[name]:>9.4f}"
            if name in gaps:
                word = "falls" if self.verdicts[name] else "does not fall"
                row += f"{gaps[name]:>9.4f}  {word}"
            lines.append(row)
        lines += [
            f"{name:<15}not run: {why}" for name, why in self.skipped.items()
        ]
        lines.append(
            "The ticket passes: it is better than every control."
            if self.passed
            else "The ticket fails: not better than "
            + ", ".join(k for k, v in self.verdicts.items() if not v)
            + "."
        )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw every run as points with its mean, into an image file.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        figure, axes = new_axes()
        for i, (name, values) in enumerate(self._runs().items()):
            color = "C0" if name == "ticket" else "C1"
            axes.plot([i] * len(values), values, "o", color=color, alpha=0.5)
            axes.plot([i - 0.3, i + 0.3], [np.mean(values)] * 2, color=color)
        axes.axhline(
            self.means["ticket"] - self.threshold, color="0.6", ls="--", lw=1
        )
        axes.set_xticks(range(1 + len(self.controls)), list(self._runs()))
        axes.set_ylabel("accuracy")
        axes.set_title(
            f"density {self.density:.4f}: "
            + ("passes" if self.passed else "fails")
        )
        save(figure, path)

    def _runs(self) -> dict[str, tuple[float, ...]]:
        return {"ticket": self.ticket, **self.controls}
