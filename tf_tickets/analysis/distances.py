"""How far masks lie apart, and the heat map of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_tickets.figures import Path, axes_or_new, save
from tf_tickets.masks import HasMasks, keys_between


def mask_distance_matrix(tickets: Sequence[HasMasks]) -> np.ndarray:
    """Normalized Hamming distances between all masks.

    Args:
        tickets: At least one; all over the same weights, or all over the same
            channels, such as the drawings of one sparsity that
            `tf_tickets.callbacks.EarlyBird` keeps.

    Returns:
        Symmetric matrix of shape ``(n, n)``: the fraction of the positions in
        which two masks differ; zeros on the diagonal.

    Raises:
        ValueError: If there is no ticket or they cover different weights.

    Reference:
        You et al., "Drawing Early-Bird Tickets", ICLR 2020, figure 3.

    Example:

    >>> import tf_tickets as tt
    >>> tickets = [
    ...     tt.structured.ChannelTicket({"bn/gamma": mask})
    ...     for mask in ([1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0])]
    >>> mask_distance_matrix(tickets)
    array([[0. , 0.5, 0.5],
           [0.5, 0. , 0. ],
           [0.5, 0. , 0. ]])
    """
    if (
        not isinstance(tickets, Sequence)
        or not tickets
        or not all(hasattr(ticket, "masks") for ticket in tickets)
    ):
        raise ValueError(
            "`tickets` must be a list of at least one ticket. "
            f"Received: tickets={tickets!r}"[:500]
        )
    first = tickets[0]
    rows = []
    for index, ticket in enumerate(tickets):
        named = f"weights, ticket 0 and ticket {index}"
        keys = keys_between(first, ticket, named)
        parts = [ticket.masks[keys[key]].ravel() for key in first.masks]
        rows.append(np.concatenate(parts))
    bits = np.stack(rows)
    # Row by row: all pairs at once would be n times the memory.
    return np.stack([(bits != row).mean(axis=1) for row in bits])


def plot_mask_distances(
    matrix: np.ndarray,
    path: Path | None = None,
    *,
    labels: Sequence[object] | None = None,
    title: str | None = None,
    axes: Any = None,
) -> Any:
    """The heat map of the paper: yellow where masks agree.

    Args:
        matrix: From `mask_distance_matrix`, in the order of epochs.
        path: An image file to write, or `None`.
        labels: Names of the masks, the epochs say; numbers from 0 if `None`.
        title: Over the map.
        axes: Matplotlib axes to draw on; a new figure if `None`.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If the matrix is not square or ``labels`` do not fit.

    Example:

    >>> axes = plot_mask_distances(np.array([[0.0, 0.5], [0.5, 0.0]]))
    >>> axes.get_xlabel()
    'epoch'
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"The matrix must be square. Received: shape {matrix.shape}"
        )
    if labels is not None and len(labels) != len(matrix):
        raise ValueError(
            f"There must be {len(matrix)} labels. Received: {len(labels)}"
        )
    axes = axes_or_new(axes, (4.5, 4))
    image = axes.imshow(matrix, cmap="viridis_r", origin="lower", vmin=0.0)
    axes.figure.colorbar(image, ax=axes, label="mask distance")
    axes.set(xlabel="epoch", ylabel="epoch", title=title)
    # Masks are those of whole epochs: no ticks between two of them.
    ticks = range(0, len(matrix), -(-len(matrix) // 10))
    names = [str(i if labels is None else labels[i]) for i in ticks]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    save(axes.figure, path)
    return axes
