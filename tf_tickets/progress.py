"""Progress of what takes seconds, shown as Keras shows it.

Functions that may take long have an option ``verbose``: `"auto"`, the default,
shows a bar when the work has taken a second, 1 shows it at once, 2 one line at
the end, and 0 nothing. ``keras.config.disable_interactive_logging()`` sends it
to ``absl.logging``, as it does with what `fit` shows.

A function that has the option opens `shown`, and whatever loops below it opens
`bar`. So the option need not be handed down, and a bar inside a bar is not
shown.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable, Iterator
from typing import Literal

import keras
from absl import logging

from tf_tickets import checks

Verbosity = Literal["auto", 0, 1, 2]

# Seconds after which "auto" shows a bar.
_PATIENCE = 1.0

# Silent, unless a function that was asked says otherwise.
_verbosity: contextvars.ContextVar[Verbosity] = contextvars.ContextVar(
    "tf_tickets_verbosity", default=0
)
_is_open = contextvars.ContextVar("tf_tickets_bar_is_open", default=False)


@contextlib.contextmanager
def shown(verbose: Verbosity) -> Iterator[None]:
    """Inside, bars are shown as an option ``verbose`` says.

    Args:
        verbose: `"auto"`, 0, 1 or 2.

    Raises:
        ValueError: If it is something else.

    Example:

    >>> with shown(0), bar("Nothing to see", 3) as step:
    ...     step()
    """
    checks.choice("verbose", verbose, ("auto", 0, 1, 2))
    before = _verbosity.set(verbose)
    try:
        yield
    finally:
        _verbosity.reset(before)


def of_fit(params: dict[str, object]) -> Verbosity:
    """How much the `fit` that gave a callback its ``params`` shows.

    Example:

    >>> of_fit({"verbose": 1}), of_fit({"verbose": 2}), of_fit({"verbose": 0})
    ('auto', 2, 0)
    """
    verbose = params.get("verbose", 0)
    if verbose == 2:
        return 2
    return "auto" if verbose in ("auto", 1) else 0


@contextlib.contextmanager
def bar(
    what: str,
    total: int | None = None,
    *,
    unit: str = "step",
    at_once: bool = False,
) -> Iterator[Callable[[], None]]:
    """A bar of Keras, where `shown` allows one; it ends complete.

    One step is no progress: nothing is shown for it, so that what happens
    inside that step may show its own.

    Args:
        what: A line above the bar.
        total: How many steps there are at most; `None` if not known.
        unit: What a step is called.
        at_once: Whether `"auto"` shows the bar before the first step is done,
            because every one takes long.

    Yields:
        A function to call when a step is done.

    Example:

    >>> with shown(2), bar("Counting", 2) as step:
    ...     step()
    ...     step()
    Counting
    2/2 - ...
    """
    verbose = _verbosity.get()
    if verbose == 0 or _is_open.get() or total in (0, 1):
        yield _nothing
        return
    made = _Bar(what, total, unit, verbose)
    if verbose == 1 or (verbose == "auto" and at_once):
        made.show()
    before = _is_open.set(True)
    try:
        yield made.step
    except BaseException:
        made.break_off()
        raise
    else:
        made.finish()
    finally:
        _is_open.reset(before)


def say(message: str) -> None:
    """Write a line where Keras writes its own.

    Args:
        message: Without the end of the line.

    Example:

    >>> say("Round 1/4")
    Round 1/4
    """
    if keras.config.is_interactive_logging_enabled():
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()
    else:
        logging.info(message)


class _Bar:
    def __init__(
        self, what: str, total: int | None, unit: str, verbose: Verbosity
    ) -> None:
        self.what, self.verbose = what, verbose
        self.began = time.monotonic()
        self.done = 0
        self.is_shown = False
        self.progbar = keras.utils.Progbar(
            total, verbose=2 if verbose == 2 else 1, unit_name=unit
        )

    def show(self) -> None:
        if not self.is_shown:
            self.is_shown = True
            say(self.what)
        self.progbar.update(self.done, finalize=False)

    def step(self) -> None:
        self.done += 1
        waited = time.monotonic() - self.began
        if self.is_shown or (self.verbose != 2 and waited > _PATIENCE):
            self.show()

    def finish(self) -> None:
        if not self.is_shown and self.verbose == "auto":
            return
        if not self.is_shown:
            say(self.what)
        # There may have been fewer steps than at most.
        self.progbar.target = self.done = max(self.done, 1)
        self.progbar.update(self.done, finalize=True)

    def break_off(self) -> None:
        if self.is_shown and self.verbose != 2:
            say("")  # what comes next begins a line of its own


def _nothing() -> None:
    pass
