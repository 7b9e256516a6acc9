"""Augmentations against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tf_tickets.zoo.datasets.augmentation import (
    random_crop,
    random_flip,
    random_rotation,
    rotate,
)


def distinct(batch=64, height=5, width=6):
    """Images in which no two pixels are alike, and none is zero."""
    size = batch * height * width * 2
    return np.arange(1, size + 1, dtype="int32").reshape(
        batch, height, width, 2
    )


def windows(image, padding):
    """Every window of a padded image, by its offset."""
    height, width, _ = image.shape
    padded = np.pad(image, [(padding, padding)] * 2 + [(0, 0)])
    return {
        (i, j): padded[i : i + height, j : j + width]
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
    }


def offset(crop, image, padding):
    found = [
        place
        for place, window in windows(image, padding).items()
        if np.array_equal(crop, window)
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("padding", [1, 2])
def test_each_crop_is_a_window_of_its_padded_image(padding):
    images = distinct()
    crops = random_crop(tf.constant(images), (0, 1), padding=padding).numpy()
    places = [
        offset(crop, image, padding)
        for crop, image in zip(crops, images, strict=True)
    ]
    # Every offset in both directions, each drawn for itself.
    span = set(range(2 * padding + 1))
    assert {i for i, _ in places} == span == {j for _, j in places}
    assert any(i != j for i, j in places)


def test_flips_half_of_the_images_left_to_right():
    images = distinct(batch=400)
    out = random_flip(tf.constant(images), (0, 1)).numpy()
    same = (out == images).all((1, 2, 3))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_are_exact(turns):
    images = distinct(batch=3, height=6, width=6).astype("uint8")
    out = rotate(tf.constant(images), [90.0 * turns] * 3).numpy()
    np.testing.assert_array_equal(out, np.rot90(images, turns, axes=(1, 2)))


def test_rotation_takes_the_nearest_pixel_and_fills_with_zero():
    image = distinct(batch=1, height=9, width=7)
    angle = np.deg2rad(20.0)
    expected = np.zeros_like(image[0])
    for row in range(9):
        for column in range(7):
            # Where the pixel comes from: turned back, clockwise on screen.
            u, v = column - 3, row - 4
            x = np.cos(angle) * u - np.sin(angle) * v + 3
            y = np.sin(angle) * u + np.cos(angle) * v + 4
            if -0.5 <= x < 6.5 and -0.5 <= y < 8.5:
                expected[row, column] = image[0, round(y), round(x)]
    np.testing.assert_array_equal(
        rotate(tf.constant(image), [20.0])[0], expected
    )
    assert (expected == 0).any()


def test_random_rotation_stays_within_its_angle():
    # One bright pixel far right of the centre: its angle can be read off.
    images = np.zeros((200, 65, 65, 1), "uint8")
    images[:, 31:34, 61:64] = 255
    out = random_rotation(tf.constant(images), (3, 4), degrees=20.0).numpy()
    angles = []
    for image in out[..., 0]:
        rows, columns = np.nonzero(image)
        angles.append(
            np.rad2deg(np.arctan2(32 - rows.mean(), columns.mean() - 32))
        )
    assert 15 < max(angles) < 21 and -21 < min(angles) < -15
    assert abs(np.mean(angles)) < 3


@pytest.mark.parametrize(
    "augmentation",
    [
        lambda x, s: random_crop(x, s, padding=1),
        random_flip,
        lambda x, s: random_rotation(x, s, degrees=20.0),
    ],
)
def test_the_seed_decides(augmentation):
    images = tf.constant(distinct())
    first = augmentation(images, (1, 2)).numpy()
    assert first.dtype == images.numpy().dtype
    assert first.shape == images.shape
    np.testing.assert_array_equal(first, augmentation(images, (1, 2)))
    assert not np.array_equal(first, augmentation(images, (1, 3)))
