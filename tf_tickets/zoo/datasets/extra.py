"""The optional packages that the data sets need."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str) -> Any:
    """Imports an optional module, or says how to install it.

    Args:
        module: Name of the module.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed.

    Example:

    >>> from tf_tickets.zoo.datasets.extra import require
    >>> require("json").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"This data set needs {package!r}, which could not be imported "
            f"({error}). Install it with: pip install 'tf_tickets[datasets]'"
        ) from error
