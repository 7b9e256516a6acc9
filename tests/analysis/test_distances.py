"""Distances between masks, and their picture."""

import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import mlp
from tf_tickets.analysis import mask_distance_matrix, plot_mask_distances
from tf_tickets.structured import ChannelTicket


def test_distances_by_hand():
    tickets = [
        ChannelTicket({"a": [1, 1, 0], "b": [1, 0]}),
        ChannelTicket({"b": [0, 0], "a": [1, 1, 1]}),
        ChannelTicket({"a": [0, 0, 1], "b": [0, 1]}),
    ]
    expected = np.array([[0, 2, 5], [2, 0, 3], [5, 3, 0]]) / 5
    np.testing.assert_allclose(mask_distance_matrix(tickets), expected)
    for i, one in enumerate(tickets):
        for j, other in enumerate(tickets):
            assert one.hamming_distance(other) == expected[i, j]


def test_weight_tickets_are_compared_alike():
    model = mlp()
    tickets = [tt.prune(model, sparsity=s) for s in (0.5, 0.75, 0.875)]
    matrix = mask_distance_matrix(tickets)
    # Masks by magnitude are nested: only what one prunes more differs.
    np.testing.assert_allclose(
        matrix, [[0, 0.25, 0.375], [0.25, 0, 0.125], [0.375, 0.125, 0]]
    )


def test_the_heat_map_is_written(tmp_path):
    matrix = np.array([[0, 0.5], [0.5, 0]])
    axes = plot_mask_distances(
        matrix, tmp_path / "map.png", labels=[5, 10], title="p = 50 %"
    )
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    [image] = axes.get_images()
    np.testing.assert_array_equal(image.get_array(), matrix)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["5", "10"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mask_distance_matrix([]), "at least one ticket"),
        (
            lambda: mask_distance_matrix(
                [ChannelTicket({"a": [1]}), ChannelTicket({"a": [1, 0]})]
            ),
            "ticket 1",
        ),
        (lambda: plot_mask_distances(np.ones((2, 3))), "square"),
        (lambda: plot_mask_distances(np.ones((2, 2)), labels=[1]), "2 labels"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
