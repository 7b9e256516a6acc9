"""Settings: what `load` was asked for, checked once."""

from __future__ import annotations

import dataclasses
import os


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that every data set shares; see `load`.

    Raises:
        ValueError: If an option is out of its range.
    """

    batch_size: int = 128
    data_dir: str | os.PathLike[str] | None = None
    augment: bool | None = None
    seed: int = 0
    validation_split: float | None = None

    def __post_init__(self) -> None:
        if not _is_integer(self.batch_size) or self.batch_size < 1:
            raise ValueError(
                "`batch_size` must be a positive integer. "
                f"Received: batch_size={self.batch_size!r}"
            )
        if self.data_dir is not None and not isinstance(
            self.data_dir, (str, os.PathLike)
        ):
            raise ValueError(
                "`data_dir` must be a path or None. "
                f"Received: data_dir={self.data_dir!r}"
            )
        if self.augment is not None and not isinstance(self.augment, bool):
            raise ValueError(
                "`augment` must be True, False or None. "
                f"Received: augment={self.augment!r}"
            )
        if not _is_integer(self.seed) or self.seed < 0:
            raise ValueError(
                "`seed` must be a non-negative integer. "
                f"Received: seed={self.seed!r}"
            )
        split = self.validation_split
        if split is not None and not 0.0 <= split < 1.0:
            raise ValueError(
                "`validation_split` must be in [0, 1), or None for the share "
                f"usual for the data set. Received: validation_split={split!r}"
            )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
