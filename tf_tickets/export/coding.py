"""Kept values and their places as bytes: the coding of pruned tensors.

A tensor becomes three runs of bytes: the kept values, and its places in one
of four codes, whichever is smallest.

- ``mask``: one bit a position.
- ``gaps``: the Elias–Fano code of the sorted positions. The low bits of each
  position are stored as they are, the gaps between the high parts in unary:
  at most 2 + log₂(n / kept) bits a kept weight, within about half a bit of
  the entropy, and it decodes without a sequential step.

- ``pattern``: which N of each M consecutive rows of a column are kept, one
  number below C(M, N) for each group, as many of them as fit in the digits of
  a 64-bit word: 2.67 bits for a group of 2:4, where the entropy of that
  pattern is log₂ 6 = 2.58 and a mask takes 4.

- ``blocks``: which blocks of rows × columns are kept whole, in the code of
  ``mask`` or ``gaps``, one place for each block instead of each weight.

A tensor for which none is worth it is stored whole: ``all``.

`pack` encodes, `unpack` decodes with NumPy; `decode` does with standard
operations of TensorFlow, so that a SavedModel can hold it.

Reference:
    Elias, "Efficient Storage and Retrieval by Content and Address of Static
    Files", J. ACM 1974; Fano, MIT memo 61, 1971.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
import tensorflow as tf

Code = Literal["mask", "gaps", "pattern", "blocks", "all"]
# Values in their stored type, and their positions in the flattened tensor.
Decoded = tuple[tf.Tensor, tf.Tensor]

# N, M and the columns of the matrix, along whose rows N of M are kept.
Group = tuple[int, int, int]


class Tiles(NamedTuple):
    """Blocks of a matrix that are kept or pruned whole.

    Attributes:
        height: Rows of a block.
        width: Columns of a block.
        columns: Of the matrix.
        kept: How many blocks are kept.
    """

    height: int
    width: int
    columns: int
    kept: int

    @property
    def size(self) -> int:
        """Weights of a block."""
        return self.height * self.width


# With more low bits than this, positions would not fit the 32-bit planes that
# the decoder works on; such a tensor holds almost nothing anyway.
_MOST_LOW_BITS = 30
_GROUP_SIZES = (2, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Where a packed tensor lies and how to read it.

    Attributes:
        key: The weight's key, as in `tf_tickets.prunable_weights`.
        shape: Of the weight.
        dtype: Of the weight, by name.
        stored: The type in which the values are stored.
        order: The order of the weight's axes in which it was flattened.
        code: ``"mask"``, ``"gaps"``, ``"pattern"``, ``"blocks"`` or ``"all"``.
        count: How many values are stored.
        low: Low bits of each position (``"gaps"``, ``"blocks"``; there -1
            where a mask says which blocks are kept).
        sections: Bytes of the values, of the low bits and of the rest.
        stamp: Eight bytes that change when those of the tensor do.
        begin: The first byte in the buffer of all packed tensors.
        group: N, M and the columns (``"pattern"``); `Tiles` (``"blocks"``).
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    order: tuple[int, ...]
    code: Code
    count: int
    low: int
    sections: tuple[int, int, int]
    stamp: tuple[int, ...]
    begin: int = 0
    group: tuple[int, ...] = (0, 0, 0)

    @property
    def bytes(self) -> int:
        """Size of the packed tensor."""
        return sum(self.sections)

    @property
    def size(self) -> int:
        """How many positions the tensor has."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Spec:
        """The inverse of `to_json`."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        return cls(**known)


def pack(
    key: str,
    array: np.ndarray,
    *,
    stored: str | None = None,
    order: tuple[int, ...] | None = None,
    begin: int = 0,
    out: np.ndarray | None = None,
    group: Group | Tiles | None = None,
) -> tuple[Spec, np.ndarray]:
    """Encode one tensor in the smallest of the codes.

    Args:
        key: The weight's key.
        array: The weight; what equals zero is not stored.
        stored: Type of the stored values; that of the array by default.
        order: Order of the axes in which to flatten; as they are by default.
        begin: Where the bytes will stand in the buffer of all packed tensors.
        out: Where to put the bytes; `packed_bytes` says how many.
        group: The pattern that `group_of` has found in it; `None` codes
            places one by one. With a group, values are in the order of groups.

    Returns:
        ``(spec, bytes)``.

    Raises:
        ValueError: If a finite value does not fit the stored type.

    Example:

    >>> weight = np.zeros((40, 40), "float32")
    >>> weight[3, 5] = 2.0
    >>> spec, data = pack("kernel", weight)
    >>> spec.code, spec.count, data.size
    ('gaps', 1, 6)
    >>> bool((unpack(spec, data) == weight).all())
    True
    """
    order = tuple(range(array.ndim)) if order is None else tuple(order)
    stored = stored or str(array.dtype)
    flat = array.transpose(order).ravel()
    if group is None:
        code, low, parts = _encoded(key, flat, stored)
    elif isinstance(group, Tiles):
        code = "blocks"
        low, parts = _in_tiles(key, flat, stored, group)
    else:
        code, low, parts = "pattern", 0, _in_groups(key, flat, stored, group)
    values, lows, rest = (part.size for part in parts)
    data = np.concatenate(parts, out=out)
    del parts  # before the fingerprint, which copies the bytes
    spec = Spec(
        key=key,
        shape=tuple(int(d) for d in array.shape),
        dtype=str(array.dtype),
        stored=stored,
        order=order,
        code=code,
        count=values // np_dtype(stored).itemsize,
        low=low,
        sections=(values, lows, rest),
        stamp=_fingerprint(data),
        begin=begin,
        group=tuple(group or (0, 0, 0)),
    )
    return spec, data


def unpack(spec: Spec, data: np.ndarray) -> np.ndarray:
    """Decode what `pack` encoded, in the weight's own type and layout.

    Raises:
        ValueError: If the bytes are others.
    """
    if data.size != spec.bytes or _fingerprint(data) != spec.stamp:
        raise ValueError(f"packed weight {spec.key} is damaged")
    ends = np.cumsum(spec.sections)
    values = data[: ends[0]].copy().view(np_dtype(spec.stored))
    flat = np.zeros(spec.size, np_dtype(spec.dtype))
    if spec.code == "all":
        flat[:] = values
    elif spec.code == "pattern":
        words = data[ends[1] :].copy().view("<i8")
        powers, table = _digits(*spec.group[:2])
        digits = words[:, None] // powers % len(table)
        which, columns = np.arange(spec.count // spec.group[0]), spec.group[2]
        base = which // columns * (spec.group[1] * columns) + which % columns
        places = table[digits.ravel()[: which.size]] * columns
        flat[(base[:, None] + places).ravel()] = values
    else:
        bits = np.unpackbits(data[ends[1] : ends[2]])
        positions = np.flatnonzero(bits)
        *_, count, low, is_gaps = numbers_of(spec)
        if is_gaps:
            planes = np.unpackbits(
                data[ends[0] : ends[1]], count=low * count
            ).reshape(low, count)
            positions = (positions - np.arange(count)) << low
            for bit, plane in enumerate(planes):
                positions += plane.astype(np.int64) << bit
        if spec.code == "blocks":
            tiles = Tiles(*spec.group)
            base = _corners(positions, tiles)
            positions = (base[:, None] + _inside(tiles)).ravel()
        flat[positions] = values
    turned = flat.reshape([spec.shape[axis] for axis in spec.order])
    return np.ascontiguousarray(turned.transpose(np.argsort(spec.order)))


def packed_bytes(
    size: int,
    count: int,
    itemsize: int,
    group: Group | Tiles | None = None,
) -> int:
    """Bytes that `pack` needs for ``count`` kept of ``size`` values."""
    if isinstance(group, Tiles):
        places = _place_costs(size // group.size, group.kept)
        return group.kept * group.size * itemsize + min(places.values())
    if group is not None:
        keep, of, _ = group
        words = -(-(size // of) // _per_word(keep, of))
        return size // of * keep * itemsize + 8 * words
    return min(_costs(size, count, itemsize).values())


def group_of(array: np.ndarray, itemsize: int) -> Group | Tiles | None:
    """The pattern in a tensor, N:M or whole blocks, if it makes it smaller.

    Args:
        array: The weight, a matrix whose columns are its last axes.
        itemsize: Bytes of a stored value.

    Returns:
        ``(N, M, columns)``, `Tiles` or `None`. The sides of a block are powers
        of two, or all rows or columns.

    Example:

    >>> weight = np.kron(np.ones((50, 25)), [[1, 4], [0, 2], [3, 0], [0, 0]])
    >>> group_of(weight, 4)
    (2, 4, 50)
    """
    kept = np.not_equal(array, 0)
    size, count = array.size, int(np.count_nonzero(kept))
    best = packed_bytes(size, count, itemsize)
    found: Group | Tiles | None = None
    for axis in range(1, array.ndim) if count else ():
        columns = math.prod(array.shape[axis:])
        tiles = _tiles_of(kept.reshape(-1, columns))
        needed = packed_bytes(size, count, itemsize, tiles)
        if tiles.size > 1 and needed < best:
            best, found = needed, tiles
    for of in _GROUP_SIZES if size else ():
        keep = round(count * of / size)
        # Kept weights that are zero by chance are few.
        if not 0 < keep < of or count * of < 0.99 * keep * size:
            continue
        for axis in range(1, array.ndim):
            columns = math.prod(array.shape[axis:])
            group = (keep, of, columns)
            if columns == 0 or size // columns % of:
                continue
            needed = packed_bytes(size, count, itemsize, group)
            if needed >= best:
                continue
            groups = kept.reshape(-1, of, columns)
            if groups.sum(1, dtype=np.uint8).max() <= keep:
                best, found = needed, group
    return found


def _tiles_of(kept: np.ndarray) -> Tiles:
    """The largest blocks that a mask keeps or prunes whole, nearly all."""
    columns = kept.shape[1]
    count = int(np.count_nonzero(kept))
    height, kept = _whole(kept, count)
    width, turned = _whole(kept.T, count / height)
    return Tiles(height, width, columns, int(np.count_nonzero(turned)))


def _whole(kept: np.ndarray, count: float) -> tuple[int, np.ndarray]:
    """How many rows go together, and which of these groups are kept."""
    rows, columns = kept.shape
    best, found = 1, np.asarray(kept)
    sizes = [2**i for i in range(1, 9) if rows % 2**i == 0]
    for size in dict.fromkeys([*sizes, rows]):
        groups = np.any(kept.reshape(rows // size, size, columns), axis=1)
        # Kept weights that are zero by chance are few.
        if count >= 0.99 * size * int(np.count_nonzero(groups)):
            best, found = size, groups
        elif size == 2:
            break  # nor are larger ones whole
    return best, found


def entropy_floor(size: int, count: int, value_bits: int = 32) -> float:
    """Bytes below which no code of values and random places can go.

    ``value_bits`` per kept value plus n·H(density) bits, where H is the
    binary entropy.

    Example:

    >>> round(entropy_floor(1000, 500))
    2125
    """
    density = count / size if size else 0.0
    entropy = sum(-p * math.log2(p) for p in (density, 1 - density) if p > 0)
    return (value_bits * count + size * entropy) / 8


def np_dtype(name: str) -> np.dtype:
    """The NumPy type of a Keras dtype name, bfloat16 included."""
    return np.dtype(getattr(ml_dtypes, name, name))


def decode(blob: tf.Variable, spec: Spec, *, inline: bool = False) -> Decoded:
    """``(values, positions)`` of a packed tensor, or an error if damaged.

    Args:
        blob: The buffer of all packed tensors.
        spec: Where this one lies.
        inline: Whether to spell the operations out at this place. It is
            faster to load than the function that many tensors share; of a
            few tensors, that is most of the time.

    Returns:
        Values in their stored type and positions in the flattened tensor,
        ascending, int64 unless ``inline``; for the code ``"all"`` none.
    """
    stamp = tf.constant(spec.stamp, tf.uint8)
    key = tf.constant(spec.key)
    if spec.code == "pattern":
        return _decoded_groups(blob, spec, stamp, key)
    if not inline and spec.code != "blocks":
        numbers = tf.constant(numbers_of(spec), tf.int64)
        return decoder_of(spec.stored)(blob, numbers, stamp, key)

    # Half the memory traffic, which is what time goes to.
    index = tf.int32 if spec.size < 2**31 else tf.int64

    def lows(planes: tf.Tensor) -> tf.Tensor:
        if spec.low <= 0:
            return tf.constant(0, index)
        small = tf.uint8 if spec.low <= 8 else index
        sums, *others = reversed(
            tf.unstack(tf.cast(planes, small), num=spec.low)
        )
        for plane in others:
            sums = sums + sums + plane
        return tf.cast(sums, index)

    values, positions = _decoded(
        blob.read_value(),
        numbers_of(spec),
        stamp,
        key,
        stored=spec.stored,
        index=index,
        lows=lows,
    )
    if spec.code == "blocks":
        tiles = Tiles(*spec.group)
        corners = _corners(positions, tiles)
        inside = tf.constant(_inside(tiles), index)
        positions = tf.reshape(corners[:, None] + inside, [-1])
    return values, positions


def numbers_of(spec: Spec) -> list[int]:
    """What `decoder_of` asks about a tensor."""
    places, is_gaps = spec.count, spec.code == "gaps"
    if spec.code == "all":
        places = 0
    elif spec.code == "blocks":
        places, is_gaps = Tiles(*spec.group).kept, spec.low >= 0
    return [
        spec.begin,
        *spec.sections,
        places,
        max(spec.low, 0),
        int(is_gaps),
    ]


def _corners(blocks: Any, tiles: Tiles) -> Any:
    """The first position of each block, by its number."""
    across = tiles.columns // tiles.width
    down = blocks // across * (tiles.height * tiles.columns)
    return down + blocks % across * tiles.width


def _inside(tiles: Tiles) -> np.ndarray:
    """The positions of a block's weights, from its first."""
    rows = np.arange(tiles.height, dtype=np.int64)[:, None] * tiles.columns
    return (rows + np.arange(tiles.width)).ravel()


@functools.cache
def decoder_of(stored: str) -> Callable[..., Decoded]:
    """``(blob, numbers, stamp, key) -> (values, positions)``.

    One traced function for all tensors of a stored type: each adds a call to
    the graph, not a copy.
    """

    def decoder(
        blob: tf.Tensor, spec: tf.Tensor, stamp: tf.Tensor, key: tf.Tensor
    ) -> Decoded:
        numbers = tf.unstack(spec, num=7)
        count, low = numbers[4:6]

        def lows(planes: tf.Tensor) -> tf.Tensor:
            _, sums = tf.while_loop(
                lambda i, _: i > 0,
                lambda i, sums: (
                    i - 1,
                    2 * sums + tf.cast(planes[i - 1], tf.int32),
                ),
                (low, tf.zeros(count[None], tf.int32)),
                parallel_iterations=1,
            )
            return tf.cast(sums, tf.int64)

        return _decoded(
            blob,
            numbers,
            stamp,
            key,
            stored=stored,
            index=tf.int64,
            lows=lows,
        )

    decoder.__name__ = f"unpack_{stored}"
    return tf.function(
        decoder,
        autograph=False,
        input_signature=[
            tf.TensorSpec([None], tf.uint8),
            tf.TensorSpec([7], tf.int64),
            tf.TensorSpec([8], tf.uint8),
            tf.TensorSpec([], tf.string),
        ],
    )


def scattered(
    positions: tf.Tensor, values: tf.Tensor, size: tf.Tensor
) -> tf.Tensor:
    """A vector with ``values`` at ``positions`` and zeros elsewhere."""
    # Five to twenty times faster than `tf.scatter_nd`.
    return tf.raw_ops.SparseToDense(
        sparse_indices=positions,
        output_shape=tf.reshape(tf.cast(size, positions.dtype), [1]),
        sparse_values=values,
        default_value=tf.zeros([], values.dtype),
        validate_indices=False,
    )


_NOTHING = np.empty(0, np.uint8)


def _encoded(
    key: str, flat: np.ndarray, stored: str
) -> tuple[Code, int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The code, its low bits, and the bytes of values, low bits and rest."""
    kept = flat != 0
    count = int(np.count_nonzero(kept))
    code, low = _cheapest(flat.size, count, np_dtype(stored).itemsize)
    values = _as_stored(key, flat if code == "all" else flat[kept], stored)
    places = (_NOTHING, _NOTHING)
    if code == "mask":
        places = (_NOTHING, np.packbits(kept))
    elif code == "gaps":
        places = _elias_fano(np.flatnonzero(kept), flat.size, low)
    return code, low, (values.view(np.uint8), *places)


def _costs(size: int, count: int, itemsize: int) -> dict[tuple[Code, int], int]:
    values = count * itemsize
    return {
        ("all", 0): size * itemsize,
        **{k: values + n for k, n in _place_costs(size, count).items()},
    }


def _place_costs(size: int, count: int) -> dict[tuple[Code, int], int]:
    """Bytes of the places alone, by code and low bits."""
    costs: dict[tuple[Code, int], int] = {("mask", 0): -(-size // 8)}
    for low in range(_MOST_LOW_BITS + 1):
        costs["gaps", low] = -(-count * low // 8) + -(
            -(count + _buckets(size, low)) // 8
        )
    return costs


def _cheapest(size: int, count: int, itemsize: int) -> tuple[Code, int]:
    costs = _costs(size, count, itemsize)
    return min(costs, key=costs.__getitem__)


def _buckets(size: int, low: int) -> int:
    return ((size - 1) >> low) + 1 if size else 0


def _elias_fano(
    positions: np.ndarray, size: int, low: int
) -> tuple[np.ndarray, np.ndarray]:
    count = positions.size
    planes = np.empty((low, count), np.uint8)
    for bit in range(low):
        planes[bit] = (positions >> bit) & 1
    high = np.zeros(count + _buckets(size, low), np.uint8)
    high[(positions >> low) + np.arange(count)] = 1
    return np.packbits(planes), np.packbits(high)


def _as_stored(key: str, values: np.ndarray, stored: str) -> np.ndarray:
    if stored == str(values.dtype):
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore"):
        converted = values.astype(np_dtype(stored))
    lost = np.isfinite(values) & ~np.isfinite(converted.astype(values.dtype))
    if lost.any():
        raise ValueError(
            f"`values` must be a type that holds the weights: {key} has "
            f"{int(lost.sum())} too large for it. "
            f"Received: values={stored!r}"
        )
    return converted


def _fingerprint(data: np.ndarray) -> tuple[int, ...]:
    # FarmHash64, which a graph can compute, too.
    return tuple(tf.fingerprint(data[None]).numpy()[0].tolist())


def _decoded(
    blob: tf.Tensor,
    numbers: Sequence[Any],
    stamp: tf.Tensor,
    key: tf.Tensor,
    *,
    stored: str,
    index: tf.DType,
    lows: Callable[[tf.Tensor], tf.Tensor],
) -> Decoded:
    """`decode`, with numbers that are known when it is traced, or tensors.

    ``lows`` adds the planes of the low bits up, from the highest plane down:
    faster than one sum over all. Positions are of the type ``index``.
    """
    # Every operation costs a loader more than it costs to run: no slices by
    # index, which take four.
    begin, *sizes, count, low, is_gaps = numbers
    raw, places = _intact(blob, begin, sizes, stamp, key)
    bits = _bits(places)
    planes = tf.reshape(tf.slice(bits, [0], [low * count]), [low, count])
    rest = tf.slice(bits, [8 * sizes[1]], [8 * sizes[2]])
    positions = tf.reshape(tf.raw_ops.Where(condition=rest), [-1])
    positions = tf.cast(positions, index)
    if isinstance(is_gaps, tf.Tensor) or is_gaps:
        # Gaps in unary: the i-th one bit stands at (high part) + i.
        # (A range of a constant length would be folded, for nothing.)
        ranks = tf.range(tf.size(positions, out_type=index), dtype=index)
        positions -= ranks if isinstance(is_gaps, int) else is_gaps * ranks
        positions = tf.bitwise.left_shift(positions, low) + lows(planes)
    return _values(raw, stored), positions


def _intact(
    blob: tf.Tensor,
    begin: Any,
    sizes: Sequence[Any],
    stamp: tf.Tensor,
    key: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The bytes of a tensor's values and of its places, if they are whole."""
    data = tf.slice(blob, [begin], [sum(sizes)])
    intact = tf.reduce_all(tf.fingerprint(tf.reshape(data, [1, -1])) == stamp)
    # The bare operation: `tf.debugging.Assert` wraps it in a branch.
    check = tf.raw_ops.Assert(
        condition=intact,
        data=["This export is damaged: packed weight", key],
    )
    with tf.control_dependencies([check]):
        raw, places = tf.split(data, [sizes[0], sizes[1] + sizes[2]])
    return raw, places


def _values(raw: tf.Tensor, stored: str) -> tf.Tensor:
    dtype = tf.as_dtype(stored)
    if dtype.size > 1:
        raw = tf.reshape(raw, [-1, dtype.size])
    return tf.bitcast(raw, dtype)


def _decoded_groups(
    blob: tf.Variable, spec: Spec, stamp: tf.Tensor, key: tf.Tensor
) -> Decoded:
    """`decode` of the code ``"pattern"``: positions group by group."""
    raw, places = _intact(
        blob.read_value(), spec.begin, spec.sections, stamp, key
    )
    keep, of, columns = spec.group
    index = tf.int32 if spec.size < 2**31 else tf.int64
    powers, table = _digits(keep, of)
    words = tf.bitcast(tf.reshape(places, [-1, 1, 8]), tf.int64)
    digits = tf.math.floormod(tf.math.floordiv(words, powers), len(table))
    count = spec.count // keep
    digits = tf.slice(tf.reshape(digits, [-1]), [0], [count])
    offsets = tf.gather(tf.constant(table * columns, index), digits)
    which = tf.range(count, dtype=index)
    base = which // columns * (of * columns) + which % columns
    positions = tf.reshape(base[:, None] + offsets, [-1])
    return _values(raw, spec.stored), positions


def _in_groups(
    key: str, flat: np.ndarray, stored: str, group: Group
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of values, group by group, of nothing, and of the places."""
    keep, of, columns = group
    values = flat.reshape(-1, of, columns).transpose(0, 2, 1).reshape(-1, of)
    kept = values != 0
    short = np.flatnonzero(kept.sum(1, dtype=np.uint8) < keep)
    if short.size:  # a zero fills the place of a kept weight
        first = np.argsort(~kept[short], axis=1, kind="stable")[:, :keep]
        kept[short[:, None], first] = True
    places = np.nonzero(kept)[1].reshape(-1, keep)
    powers, table = _digits(keep, of)
    number = np.zeros(1 << of, np.int64)
    number[(1 << table).sum(1)] = np.arange(len(table))
    digits = number[(1 << places).sum(1)]
    short_word = -digits.size % powers.size
    digits = np.pad(digits, (0, short_word)).reshape(-1, powers.size)
    words = (digits * powers).sum(1).astype("<i8")
    listed = np.ascontiguousarray(values[kept])
    listed[listed == 0] = 0  # no negative zero
    return (
        _as_stored(key, listed, stored).view(np.uint8),
        _NOTHING,
        words.view(np.uint8),
    )


def _in_tiles(
    key: str, flat: np.ndarray, stored: str, tiles: Tiles
) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Low bits, or -1 for a mask, and the bytes, values block by block."""
    height, width, columns, _ = tiles
    blocks = flat.reshape(-1, height, columns // width, width)
    values = blocks.transpose(0, 2, 1, 3).reshape(-1, tiles.size)
    kept = (values != 0).any(1)
    listed = np.ascontiguousarray(values[kept]).ravel()
    listed[listed == 0] = 0  # no negative zero
    costs = _place_costs(kept.size, tiles.kept)
    code, low = min(costs, key=costs.__getitem__)
    places = (_NOTHING, np.packbits(kept))
    if code == "gaps":
        places = _elias_fano(np.flatnonzero(kept), kept.size, low)
    stored_values = _as_stored(key, listed, stored).view(np.uint8)
    return low if code == "gaps" else -1, (stored_values, *places)


def _per_word(keep: int, of: int) -> int:
    """How many digits below C(M, N) a word of 63 bits holds."""
    return int(63 / math.log2(math.comb(of, keep)))


@functools.cache
def _digits(keep: int, of: int) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the digits of a word, and the places of each digit."""
    table = np.array([*itertools.combinations(range(of), keep)], np.int64)
    powers = len(table) ** np.arange(_per_word(keep, of), dtype=np.int64)
    return powers, table


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)


def _bits(data: tf.Tensor) -> tf.Tensor:
    # A look-up moves eight bits at a time; shifting each is slower.
    return tf.reshape(tf.gather(_BITS, tf.cast(data, tf.int32)), [-1])
