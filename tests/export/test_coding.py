"""Packed tensors come back bit by bit and are as small as they can be."""

import math

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tf_tickets.export import coding, serving

DENSITIES = (0.0, 0.0003, 0.005, 0.014, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0)
SHAPES = ((1,), (7,), (8, 8), (3, 3, 5, 7), (64, 33), (1000, 41))


def draw(shape, density, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) * 50 + np.sign(rng.normal(size=shape))
    if np.dtype(dtype).kind in "iu":
        values = rng.integers(1, 100, shape)
    return (values * (rng.random(shape) < density)).astype(dtype)


def through_tensorflow(spec, data):
    """Decode at the end of a longer buffer, as an export does."""
    blob = tf.Variable(np.concatenate([np.full(5, 9, np.uint8), data]))
    spec = coding.Spec(**{**spec.__dict__, "begin": 5})

    @tf.function(autograph=False)
    def make():
        tensors = serving.empty_list(tf.as_dtype(spec.dtype), 1)
        tensors = serving.set_dense(tensors, blob, {0: spec})
        return tf.raw_ops.TensorListGetItem(
            input_handle=tensors,
            index=0,
            element_shape=spec.shape,
            element_dtype=tf.as_dtype(spec.dtype),
        )

    return make().numpy()


@pytest.mark.parametrize("density", DENSITIES)
def test_packed_tensors_come_back_exactly(density):
    for shape in SHAPES:
        array = draw(shape, density)
        spec, data = coding.pack("w", array)
        assert data.size == spec.bytes
        np.testing.assert_array_equal(coding.unpack(spec, data), array)
        np.testing.assert_array_equal(through_tensorflow(spec, data), array)


@pytest.mark.parametrize(
    "dtype", ["float16", "float64", "bfloat16", "int8", "uint8", "int32"]
)
def test_every_type_of_weight_can_be_packed(dtype):
    dtype = getattr(ml_dtypes, dtype, dtype)
    for density in (0.01, 0.6):
        array = draw((40, 50), density, dtype)
        spec, data = coding.pack("w", array)
        assert coding.unpack(spec, data).dtype == array.dtype
        np.testing.assert_array_equal(coding.unpack(spec, data), array)
        np.testing.assert_array_equal(through_tensorflow(spec, data), array)


def test_axes_come_back_in_the_weights_own_order():
    array = draw((3, 2, 20, 30), 0.1)
    for order in ((3, 0, 1, 2), (1, 0, 3, 2)):
        spec, data = coding.pack("w", array, order=order)
        np.testing.assert_array_equal(coding.unpack(spec, data), array)


def test_nan_is_kept_and_negative_zero_is_not():
    array = np.array([0.0, np.nan, -0.0, np.inf] * 50, "float32")
    spec, data = coding.pack("w", array)
    again = coding.unpack(spec, data)
    assert spec.count == 100
    assert np.isnan(again[1::4]).all() and np.isinf(again[3::4]).all()


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_values_can_be_stored_in_half_the_bytes(stored):
    array = draw((100, 100), 0.1)
    spec, data = coding.pack("w", array, stored=stored)
    rounded = array.astype(getattr(ml_dtypes, stored, stored)).astype("float32")
    np.testing.assert_array_equal(coding.unpack(spec, data), rounded)
    np.testing.assert_array_equal(through_tensorflow(spec, data), rounded)
    assert data.size < 0.6 * coding.pack("w", array)[1].size


def test_a_dense_tensor_in_half_the_bytes_is_stored_whole():
    array = draw((100, 100), 1.0)
    spec, data = coding.pack("w", array, stored="float16")
    assert spec.code == "all" and data.size == 20000
    rounded = array.astype("float16").astype("float32")
    np.testing.assert_array_equal(through_tensorflow(spec, data), rounded)


def test_values_too_large_for_their_type_are_an_error():
    array = np.array([[0.0, 1e6]] * 10, "float32")
    with pytest.raises(ValueError, match="w has 10 too large.*float16"):
        coding.pack("w", array, stored="float16")


@pytest.mark.parametrize(
    "density", [0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.014, 0.01, 0.005]
)
def test_bytes_are_close_to_the_entropy(density):
    # By hand: 32 bits a kept weight, and the binary entropy of the places.
    array = draw((1024, 2048), density)
    kept, n = np.count_nonzero(array), array.size
    p = kept / n
    bits = 32 * kept - n * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    spec, data = coding.pack("w", array)
    assert data.size <= 1.03 * bits / 8
    assert coding.entropy_floor(n, kept) == pytest.approx(bits / 8)
    assert coding.packed_bytes(n, kept, 4) == data.size


def of_pattern(shape, keep, of, dtype="float32", seed=0):
    """``keep`` of every ``of`` rows in each column, at random."""
    rng = np.random.default_rng(seed)
    columns = shape[-1]
    ranks = rng.random((math.prod(shape) // columns // of, of, columns))
    mask = (ranks.argsort(1).argsort(1) < keep).reshape(shape)
    return (draw(shape, 1.0, seed=seed) * mask).astype(dtype)


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("keep, of", [(2, 4), (1, 4), (3, 4), (4, 8), (1, 2)])
def test_a_pattern_is_coded_close_to_its_own_entropy(keep, of, stored):
    # By hand: the values, and log2 of the ways to choose N of M, each group.
    array = of_pattern((512, 96), keep, of)
    itemsize = np.dtype(stored).itemsize
    groups = array.size // of
    bits = groups * (8 * itemsize * keep + math.log2(math.comb(of, keep)))
    group = coding.group_of(array, itemsize)
    assert group == (keep, of, 96)
    spec, data = coding.pack("w", array, stored=stored, group=group)
    places = spec.sections[2] * 8 / groups
    assert data.size <= 1.005 * bits / 8
    assert places <= 1.05 * math.log2(math.comb(of, keep))
    assert data.size < coding.pack("w", array, stored=stored)[1].size
    rounded = array.astype(stored).astype("float32")
    np.testing.assert_array_equal(coding.unpack(spec, data), rounded)
    np.testing.assert_array_equal(through_tensorflow(spec, data), rounded)
    assert coding.Spec.from_json(spec.to_json()) == spec


def test_patterns_of_convolutions_and_with_zeros_by_chance():
    array = of_pattern((3, 3, 8, 10), 2, 4)
    array[0, 0, :4, 3] = 0  # a whole group
    array[1, 1, 0] = -0.0
    group = coding.group_of(array, 4)
    assert group is None  # too many for chance
    array = of_pattern((3, 3, 80, 10), 2, 4)
    array[0, 0, :4, 3] = 0
    array[1, 1, 0, 4] = -0.0
    group = coding.group_of(array, 4)
    assert group == (2, 4, 10)
    spec, data = coding.pack("w", array, group=group)
    np.testing.assert_array_equal(coding.unpack(spec, data), array)
    np.testing.assert_array_equal(through_tensorflow(spec, data), array)
    assert not np.signbit(coding.unpack(spec, data)[array == 0]).any()
    for place in (0, data.size - 1):
        damaged = data.copy()
        damaged[place] ^= 1
        with pytest.raises(ValueError, match="w is damaged"):
            coding.unpack(spec, damaged)
    blob = tf.Variable(damaged)
    with pytest.raises(tf.errors.InvalidArgumentError, match="damaged"):
        coding.decode(blob, spec)


@pytest.mark.parametrize("density", DENSITIES)
def test_places_at_random_have_no_pattern(density):
    for shape in SHAPES:
        assert coding.group_of(draw(shape, density), 4) is None


def of_blocks(shape, height, width, density, dtype="float32", seed=0):
    """Blocks of the matrix of the last axis, at random."""
    rng = np.random.default_rng(seed)
    rows, columns = math.prod(shape[:-1]), shape[-1]
    kept = rng.random((rows // height, columns // width)) < density
    mask = np.repeat(np.repeat(kept, height, 0), width, 1).reshape(shape)
    return (draw(shape, 1.0, seed=seed) * mask).astype(dtype), kept


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize(
    "shape, height, width, density",
    [
        ((512, 96), 4, 1, 0.1),
        ((512, 96), 4, 1, 0.5),
        ((512, 96), 1, 4, 0.1),
        ((3, 3, 64, 64), 8, 8, 0.2),
        ((512, 96), 1, 96, 0.3),
        ((300, 900), 300, 1, 0.3),
        ((1000, 640), 2, 1, 0.01),
    ],
)
def test_blocks_are_coded_close_to_their_own_entropy(
    shape, height, width, density, stored
):
    # By hand: the values, and the binary entropy of each block.
    array, kept = of_blocks(shape, height, width, density)
    itemsize = np.dtype(stored).itemsize
    p = kept.mean()
    entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    places = kept.size * entropy
    values = 8 * itemsize * kept.sum() * height * width
    found = coding.group_of(array, itemsize)
    assert found == (height, width, shape[-1], kept.sum())
    spec, data = coding.pack("w", array, stored=stored, group=found)
    assert spec.code == "blocks"
    count = int(np.count_nonzero(array))
    assert data.size == coding.packed_bytes(array.size, count, itemsize, found)
    assert data.size <= 1.02 * (values + places) / 8
    assert 8 * sum(spec.sections[1:]) <= 1.2 * places + 16
    assert data.size < coding.pack("w", array, stored=stored)[1].size
    rounded = array.astype(stored).astype("float32")
    np.testing.assert_array_equal(coding.unpack(spec, data), rounded)
    np.testing.assert_array_equal(through_tensorflow(spec, data), rounded)
    assert coding.Spec.from_json(spec.to_json()) == spec
    damaged = data.copy()
    damaged[-1] ^= 1
    with pytest.raises(ValueError, match="w is damaged"):
        coding.unpack(spec, damaged)
    with pytest.raises(tf.errors.InvalidArgumentError, match="damaged"):
        coding.decode(tf.Variable(damaged), spec)


def test_blocks_with_zeros_by_chance_and_blocks_that_are_none():
    array, kept = of_blocks((512, 96), 4, 1, 0.3)
    array[np.nonzero(array)[0][0], np.nonzero(array)[1][0]] = -0.0
    found = coding.group_of(array, 4)
    assert found == (4, 1, 96, kept.sum())
    spec, data = coding.pack("w", array, group=found)
    np.testing.assert_array_equal(coding.unpack(spec, data), array)
    assert not np.signbit(coding.unpack(spec, data)[array == 0]).any()
    np.testing.assert_array_equal(through_tensorflow(spec, data), array)
    # A tenth of the weights of each block is gone.
    loose = array * (np.random.default_rng(1).random(array.shape) < 0.9)
    assert coding.group_of(loose, 4) is None


@pytest.mark.parametrize("density", DENSITIES)
def test_packed_is_never_larger_than_dense(density):
    for shape in SHAPES:
        array = draw(shape, density)
        assert coding.pack("w", array)[1].size <= max(array.nbytes, 1)


def test_damage_is_found_wherever_it_is():
    array = draw((100, 100), 0.05)
    spec, data = coding.pack("w", array)
    blob = tf.Variable(data)
    coding.decode(blob, spec)
    for place in np.linspace(0, data.size - 1, 9, dtype=int):
        damaged = data.copy()
        damaged[place] ^= 1
        blob.assign(damaged)
        with pytest.raises(tf.errors.InvalidArgumentError, match="damaged"):
            coding.decode(blob, spec)
        with pytest.raises(ValueError, match="w is damaged"):
            coding.unpack(spec, damaged)
