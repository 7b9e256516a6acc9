"""Damaged, hostile and unwritable files.

A file either reads as what was written or gets one `ValueError` that names it.
"""

import builtins
import errno
import io
import json
import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp
from tf_tickets import archive
from tf_tickets.selection import named_weights

ROOT = Path(__file__).parent.parent
LIMIT = 8 * 2**20  # bytes of memory that a refusal may take


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """``{kind: (bytes of a good file, how to read it)}``."""
    folder = tmp_path_factory.mktemp("whole")
    model = compiled(mlp(), "adam")
    tt.prune(model, 0.6).save(folder / "ticket")
    tt.Snapshot.take(model).save(folder / "snapshot", {"epoch": 3})
    return {
        "ticket": ((folder / "ticket").read_bytes(), tt.Ticket.load),
        "snapshot": ((folder / "snapshot").read_bytes(), tt.Snapshot.load),
    }


def content(kind, value):
    """Everything that a file of ``kind`` says, to compare."""
    if kind == "snapshot":
        value, metadata = value
        parts = (value.variables, value.optimizer)
    else:
        parts = (value.masks, value.weights or {}, value.scores or {})
        metadata = value.metadata
    return (
        [
            {k: (a.shape, a.tobytes()) for k, a in part.items()}
            for part in parts
        ],
        metadata,
    )


def attempt(kind, read, path, expected):
    """``"same"`` or ``"refused"``; anything else fails."""
    try:
        value = read(path)
    except ValueError as error:
        text = str(error)
        assert str(path) in text and f"tf_tickets {kind} file: " in text
        assert len(text) < 1000 and not text.endswith(": ")
        return "refused"
    assert content(kind, value) == expected, "read something else, silently"
    return "same"


def mutations(data, rng):
    """Damaged copies: cut short, bits flipped, parts moved, lost or doubled."""
    for end in sorted({*range(0, 64), *rng.sample(range(len(data)), 150)}):
        yield "truncated", data[:end]
    ends = len(data) - len(data[-1500:])
    for i in range(500):
        # Half of them in the directory at the end, where damage is subtle.
        low = ends if i % 2 else 0
        place = rng.randrange(low, len(data))
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        yield "flipped", bytes(flipped)
    for _ in range(200):
        a, b = sorted(rng.sample(range(len(data)), 2))
        b = min(b, a + 5000)
        part = data[a:b]
        yield (
            "moved",
            rng.choice(
                [
                    data[:a] + data[b:],
                    data[:b] + part + data[b:],
                    data[:a] + rng.randbytes(len(part)) + data[b:],
                    data[:a] + bytes(len(part)) + data[b:],
                    part + data,
                    data + part,
                ]
            ),
        )


@pytest.mark.parametrize("kind", ["ticket", "snapshot"])
def test_a_damaged_file_is_refused_or_reads_the_same(kind, whole, tmp_path):
    data, read = whole[kind]
    path = tmp_path / "file.npz"
    path.write_bytes(data)
    expected = content(kind, read(path))
    seen = {}
    for how, damaged in mutations(data, random.Random(0)):
        path.write_bytes(damaged)
        found = attempt(kind, read, path, expected)
        seen[how, found] = seen.get((how, found), 0) + 1
    assert seen["truncated", "refused"] > 200
    assert ("truncated", "same") not in seen
    assert seen["flipped", "refused"] > 250  # some bits are dates


def rewritten(data, change):
    """The file with another manifest, its checksums right."""
    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        members = {n: bundle.read(n) for n in bundle.namelist()}
    described = json.loads(
        np.load(io.BytesIO(members["manifest.npy"])).tobytes()
    )
    described = change(described)
    buffer = io.BytesIO()
    np.save(buffer, np.frombuffer(json.dumps(described).encode(), np.uint8))
    return bundled({**members, "manifest.npy": buffer.getvalue()})


def bundled(members, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as bundle:
        for name, value in members.items():
            bundle.writestr(name, value)
    return buffer.getvalue()


def places(node, path=()):
    """Paths of every node of a JSON value."""
    yield path
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in items:
            yield from places(child, (*path, key))


ODD = [
    None, True, -1, 0, 3.5, 2**70, float("nan"), float("inf"), "", "x",
    "../../x", [], {}, [[]], [-1], [2**62, 4], ["x"], {"x": 1}, [True],
    "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["ticket", "snapshot"])
def test_a_manifest_of_wrong_types_is_refused(kind, whole, tmp_path):
    """Any node replaced by any odd value, or gone."""
    data, read = whole[kind]
    path = tmp_path / "file.npz"
    path.write_bytes(data)
    (arrays, _), rng = content(kind, read(path)), random.Random(0)
    refused = 0
    for _ in range(400):

        def change(described):
            *way, last = rng.choice([p for p in places(described) if p])
            parent = described
            for key in way:
                parent = parent[key]
            if rng.random() < 0.2:
                del parent[last]
            else:
                parent[last] = rng.choice(ODD)
            return described

        path.write_bytes(rewritten(data, change))
        try:
            found, said = content(kind, read(path))
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        # The description of the origin may say anything; arrays may not
        # change, but a part that is not mentioned is not there.
        assert isinstance(said, dict)
        for there, here in zip(found, arrays, strict=True):
            assert set(there.items()) <= set(here.items())
    assert refused > 250


class Trap:
    """Unpickling this leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def npy(header, body=b""):
    """An npy member with any header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def hostile(data, sprung):
    """``{what: bytes}`` of files made to do harm."""
    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        good = {n: bundle.read(n) for n in bundle.namelist()}
    objects = io.BytesIO()
    np.save(objects, np.array([Trap(sprung)], object), allow_pickle=True)
    huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"
    inflated = bundled(
        {**good, "array_0.npy": bytes(2**26)},
        compression=zipfile.ZIP_DEFLATED,
    )
    claims = bytearray(data)
    entry = claims.index(b"PK\x01\x02")
    claims[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    encrypted = bytearray(data)
    encrypted[entry + 8] |= 1
    twice = io.BytesIO(data)
    with zipfile.ZipFile(twice, "a") as bundle, pytest.warns(UserWarning):
        bundle.writestr("array_0.npy", good["array_0.npy"])
    deep = b"[" * 100_000
    return {
        "raw pickle": pickle.dumps(Trap(sprung)),
        "pickled array": bundled({**good, "array_0.npy": objects.getvalue()}),
        "pickled manifest": bundled(
            {**good, "manifest.npy": objects.getvalue()}
        ),
        "declared 4 TB": bundled({**good, "array_0.npy": npy(huge % 2**40)}),
        "declared overflow": bundled(
            {**good, "array_0.npy": npy(huge % f"{2**62}, 4")}
        ),
        "declared negative": bundled({**good, "array_0.npy": npy(huge % -1)}),
        "header of code": bundled(
            {**good, "array_0.npy": npy("__import__('os').system('true')")}
        ),
        "header too long": bundled({**good, "array_0.npy": npy("(" * 60_000)}),
        "structured array": bundled(
            {
                **good,
                "array_0.npy": npy(
                    "{'descr': [('a', '<f4')], 'fortran_order': False, "
                    "'shape': (1,), }",
                    bytes(4),
                ),
            }
        ),
        "compressed bomb": inflated,
        "sizes beyond the file": bytes(claims),
        "encrypted": bytes(encrypted),
        "member twice": twice.getvalue(),
        "path up": bundled({**good, "../../evil.npy": b""}),
        "absolute path": bundled({**good, "/tmp/evil.npy": b""}),
        "path through a member": bundled(
            {**good, "array_0.npy/../../evil.npy": b""}
        ),
        "more members": bundled({**good, "array_99.npy": b""}),
        "no manifest": bundled(
            {n: v for n, v in good.items() if n != "manifest.npy"}
        ),
        "manifest is a number": rewritten(data, lambda _: 3),
        "manifest is a list": rewritten(data, lambda _: []),
        "manifest nested deep": bundled(
            {
                **good,
                "manifest.npy": npy(
                    "{'descr': '|u1', 'fortran_order': False, "
                    "'shape': (100000,), }",
                    deep,
                ),
            }
        ),
        "other format": rewritten(data, lambda d: {**d, "format": "zip"}),
        "newer": rewritten(data, lambda d: {**d, "format_version": 2}),
        "plain npz": bundled({"w.npy": good["array_0.npy"]}),
        "empty zip": bundled({}),
        "empty": b"",
        "text": b"not a ticket\n" * 100,
    }


@pytest.mark.parametrize("kind", ["ticket", "snapshot"])
def test_a_hostile_file_is_refused_and_costs_nothing(kind, whole, tmp_path):
    data, read = whole[kind]
    path, sprung = tmp_path / "file.npz", tmp_path / "sprung"
    files = hostile(data, sprung)
    for what, bad in files.items():
        path.write_bytes(bad)
        tracemalloc.start()
        try:
            found = attempt(kind, read, path, None)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert found == "refused", what
        assert peak < LIMIT, f"{what}: {peak:,} bytes"
    assert not sprung.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"file.npz"}
    # The trap is one: NumPy springs it when it is allowed to.
    path.write_bytes(files["pickled array"])
    with np.load(path, allow_pickle=True) as file:
        file["array_0"]
    assert sprung.exists()


def test_what_is_no_file_is_refused_at_once(whole, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for _, read in whole.values():
        with pytest.raises(ValueError, match="no regular file"):
            read(tmp_path / "pipe")
        with pytest.raises(IsADirectoryError, match="directory"):
            read(tmp_path)
        for missing in ("missing", "link", "no/such/folder"):
            with pytest.raises(FileNotFoundError, match="There is no"):
                read(tmp_path / missing)
        with pytest.raises(ValueError, match="no regular file"):
            read("/dev/zero")


def test_only_numbers_are_written(tmp_path):
    for array in (
        np.array(["x"]),
        np.array([{}], object),
        np.array(["2020"], "M8"),
    ):
        with pytest.raises(TypeError, match="Received"):
            archive.write(tmp_path / "f", "ticket", {}, {"a": array})
    assert not list(tmp_path.iterdir())


# Disks that are full, directories that cannot be written.


class FullDisk:
    """After so many bytes every write fails, as on a full disk."""

    def __init__(self, monkeypatch, room):
        real = os.fdopen

        def fdopen(*args, **kwargs):
            file = real(*args, **kwargs)
            write, left = file.write, [room]

            def limited(data):
                left[0] -= len(data)
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return write(data)

            return _Proxy(file, limited)

        monkeypatch.setattr(archive.os, "fdopen", fdopen)


class _Proxy(io.BufferedIOBase):
    def __init__(self, file, write):
        self._file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self._file, name)

    def seekable(self):
        return True

    def seek(self, *args):
        return self._file.seek(*args)

    def tell(self):
        return self._file.tell()

    def flush(self):
        self._file.flush()

    def fileno(self):
        return self._file.fileno()

    def close(self):
        self._file.close()


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_full_disk_leaves_the_old_file_whole(room, tmp_path, monkeypatch):
    model = mlp()
    old, new = tt.prune(model, 0.5), tt.prune(model, 0.9)
    old.save(tmp_path / "ticket.npz")
    FullDisk(monkeypatch, room)
    with pytest.raises(OSError, match="No space left"):
        new.save(tmp_path / "ticket.npz")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["ticket.npz"]
    assert tt.Ticket.load(tmp_path / "ticket.npz").kept == old.kept


def test_a_full_disk_stops_a_run_that_can_go_on(data, tmp_path, monkeypatch):
    def imp():
        return tt.callbacks.IterativeMagnitudePruning(
            target_sparsity=0.5, rounds=2, epochs_per_round=1,
            directory=tmp_path / "run",
        )  # fmt: skip

    one = imp()
    real, calls = archive.write, []

    def write(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(archive, "write", write)
    with pytest.raises(OSError, match="No space left"):
        compiled(mlp()).fit(
            batches(*data), epochs=one.epochs, verbose=0, callbacks=[one]
        )
    monkeypatch.undo()
    two = imp()
    compiled(mlp()).fit(
        batches(*data), epochs=two.epochs, verbose=0, callbacks=[two]
    )
    assert two.ticket.sparsity == 0.5


def test_a_directory_that_cannot_be_written_stops_before_training(
    data, monkeypatch
):
    model = compiled(mlp())
    before = {k: v.numpy() for k, v in named_weights(model).items()}
    # No user, root included, can make a directory there.
    for place in ("/proc/tickets/run", "/proc/self/tickets"):
        with pytest.raises(OSError, match="/proc"):
            tt.prune(model, 0.5).save(f"{place}.npz")
        for callback in (
            tt.callbacks.IterativeMagnitudePruning(
                target_sparsity=0.5, epochs_per_round=1, directory=place
            ),
            tt.callbacks.GradualPruning(
                target_sparsity=0.5, end_step=2, directory=place
            ),
        ):
            with pytest.raises(OSError, match="/proc"):
                model.fit(batches(*data), verbose=0, callbacks=[callback])
        with pytest.raises(OSError, match="/proc"):
            tt.export.saved_model(model, place)
    for key, variable in named_weights(model).items():
        np.testing.assert_array_equal(variable.numpy(), before[key])


def test_a_file_that_may_not_be_read_says_so(whole, tmp_path, monkeypatch):
    path = tmp_path / "ticket.npz"
    path.write_bytes(whole["ticket"][0])

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        tt.Ticket.load(path)
