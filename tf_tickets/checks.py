"""Options checked in one place, each with one sentence that says what is wrong.

Every function returns the value as Python's own number, so that what NumPy
hands over (``np.int64(3)``) is as welcome as what is written down.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import operator
import warnings
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

# So many numbers, and what is made of them, stay in the processor's cache.
PIECE = 1 << 16


def whole(
    name: str, value: Any, *, least: int = 1, most: int | None = None
) -> int:
    """A whole number of at least ``least``.

    Args:
        name: Of the option, for the message.
        value: What was given: an integer of Python or NumPy, no boolean.
        least: The smallest allowed value.
        most: The largest; `None` for any.

    Returns:
        The value as an ``int``.

    Raises:
        ValueError: If it is something else.

    Example:

    >>> whole("every", np.int64(3))
    3
    """
    if (
        isinstance(value, bool | np.bool_)
        or not isinstance(value, numbers.Integral)
        or value < least
        or (most is not None and operator.index(value) > most)
    ):
        end = "" if most is None else f" and at most {most:,}"
        raise ValueError(
            f"`{name}` must be a whole number of at least {least}{end}. "
            f"Received: {name}={value!r}"
        )
    return operator.index(value)


def number(name: str, value: Any, interval: str = "(-inf, inf)") -> float:
    """A finite number inside an interval.

    Args:
        name: Of the option, for the message.
        value: What was given: a number of Python or NumPy, no boolean.
        interval: Such as ``"[0, 1)"``: a square bracket includes its end.

    Returns:
        The value as a ``float``.

    Raises:
        ValueError: If it is something else.

    Example:

    >>> number("momentum", 0.9, "[0, 1)")
    0.9
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    real = isinstance(value, numbers.Real | np.number) and not isinstance(
        value, bool | np.bool_
    )
    x = float(value) if real else float("nan")
    fine = (
        np.isfinite(x)
        and (low < x or (interval[0] == "[" and x == low))
        and (x < high or (interval[-1] == "]" and x == high))
    )
    if not fine:
        wanted = {
            "(-inf, inf)": "a finite number",
            "(0, inf)": "a positive number",
            "[0, inf)": "a number of at least 0",
        }.get(interval, f"a number in {interval}")
        raise ValueError(
            f"`{name}` must be {wanted}. Received: {name}={value!r}"
        )
    return x


def sparsity(value: Any, name: str = "sparsity") -> float:
    """A sparsity: a number in [0, 1).

    Args:
        value: What was given.
        name: Of the option, for the message.

    Returns:
        The value as a ``float``.

    Raises:
        ValueError: If it is something else.

    Example:

    >>> sparsity(0.9)
    0.9
    """
    try:
        return number(name, value, "[0, 1)")
    except ValueError:
        raise ValueError(
            f"`{name}` must be a number in [0, 1), the fraction of weights "
            f"that become zero. Received: {name}={value!r}"
        ) from None


def choice(name: str, value: Any, known: Collection[Any]) -> None:
    """One of the known words.

    Args:
        name: Of the option, for the message.
        value: What was given.
        known: What it may be.

    Raises:
        ValueError: If it is something else.

    Example:

    >>> choice("weights", "keep", ("start", "keep"))
    """
    plain = value.item() if isinstance(value, np.generic) else value
    if not any(
        plain is one or (isinstance(plain, type(one)) and plain == one)
        for one in known
    ):
        words = [repr(one) for one in known]
        wanted = (
            " or ".join(words)
            if len(words) <= 2
            else f"one of [{', '.join(words)}]"
        )
        raise ValueError(
            f"`{name}` must be {wanted}. "
            + f"Received: {name}={value!r}"[:500]  # also after a long list
        )


def word_for(choice: Any) -> str:
    """A choice as a word, by which a run knows what it was begun with.

    Args:
        choice: A name, a function, ``functools.partial`` with its options, or
            an instance. Options that are arrays and other large things are
            not told; functions without a name are, by what they do.

    Returns:
        The same for the same choice in another process.

    Example:

    >>> import functools
    >>> word_for(functools.partial(sparsity, name="density"))
    "sparsity(name='density')"
    >>> word_for(lambda x: x + 1) == word_for(lambda x: x + 2)
    False
    """
    if isinstance(choice, str):
        return choice
    if isinstance(choice, functools.partial):
        given = [*enumerate(choice.args), *sorted(choice.keywords.items())]
        options = [
            _short(value) if isinstance(key, int) else f"{key}={_short(value)}"
            for key, value in given
            if _short(value)
        ]
        shown = f"({', '.join(options)})" if options else ""
        return f"{word_for(choice.func)}{shown}"
    if dataclasses.is_dataclass(choice) and not isinstance(choice, type):
        return repr(choice)
    name = str(getattr(choice, "__qualname__", type(choice).__name__))
    code = getattr(choice, "__code__", None)
    if code is not None and name.endswith("<lambda>"):
        cells = getattr(choice, "__closure__", None) or ()
        what = [code.co_code, code.co_names, _constants(code)]
        what += [_short(choice.__defaults__)]
        what += [_short(cell.cell_contents) for cell in cells]
        name += f" {zlib.crc32(repr(what).encode()):08x}"
    return name


def _short(value: Any) -> str:
    """A value of an option, if it is a small one; else nothing."""
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value)
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, tuple | list) and len(value) < 20:
        return f"[{', '.join(map(_short, value))}]"
    return word_for(value) if callable(value) else ""


def _constants(code: Any) -> list[str]:
    """The constants of a function; of functions in it, theirs."""
    return [
        repr((one.co_code, _constants(one)))
        if hasattr(one, "co_code")
        else repr(one)
        for one in code.co_consts
    ]


def make_plain(options: Any) -> None:
    """Make NumPy's numbers in a dataclass, even a frozen one, Python's.

    They are written down, compared with what was written down, and handed to
    Keras, which refuses NumPy's.

    Args:
        options: The instance, in its ``__post_init__``.

    Example:

    >>> from tf_tickets.pruning import Constant
    >>> Constant(np.float64(0.5), begin_step=np.int64(3))
    Constant(sparsity=0.5, begin_step=3)
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(options, field.name, value.item())


def finite(what: str, arrays: Mapping[str, Any], why: str) -> None:
    """Arrays that hold neither NaN nor infinity.

    Args:
        what: Of which the arrays are, for the message.
        arrays: ``{key: real array}``.
        why: A question or advice that tells where they may come from.

    Raises:
        ValueError: If one holds some, with the keys.

    Example:

    >>> finite("Weights", {"w": np.ones(3)}, "has training diverged?")
    """
    broken = []
    for key, value in arrays.items():
        flat = np.asarray(value).reshape(-1)
        if not all(
            map(_are_finite, np.split(flat, range(PIECE, flat.size, PIECE)))
        ):
            broken.append(key)
    if broken:
        raise ValueError(
            f"{what} must be finite: {why} Received: NaN or infinity in "
            f"{len(broken)} tensors: {', '.join(broken[:5])}"
        )


def _are_finite(array: np.ndarray) -> bool:
    if array.dtype.kind not in "fiu":
        array = array.astype(np.float32)  # bfloat16
    return bool(np.isfinite(array).all())


def mapping(name: str, value: Any) -> None:
    """A mapping from names to values, or `None`.

    Args:
        name: Of the option, for the message.
        value: What was given.

    Raises:
        ValueError: If it is something else.

    Example:

    >>> mapping("masks", {"dense/kernel": np.ones((2, 2), bool)})
    """
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(
            f"`{name}` must map names to values. Received: {name}={value!r}"[
                :500
            ]
        )


def warn(message: str) -> None:
    """Warn whoever called this package, from however deep inside it.

    Args:
        message: What is the matter, and what to do.
    """
    level, frame = 1, inspect.currentframe()
    package = __name__.partition(".")[0]
    while (
        frame is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] == package
    ):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
