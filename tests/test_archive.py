"""Files are whole or absent, and what is damaged or hostile is refused.

A file either reads as what was written or gets one `ValueError` that names it.
"""

import contextlib
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import tf_tickets as tt
from tests.conftest import compiled, mlp
from tf_tickets import archive

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


def parted(data):
    """``(header, arrays)`` of a file's bytes."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header, arrays):
    """The inverse of `parted`; the header may be bytes, too."""
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + arrays


def mutations(data, rng):
    """Damaged copies: cut short, bits flipped, parts moved, lost or doubled."""
    for end in sorted({*range(0, 64), *rng.sample(range(len(data)), 150)}):
        yield "truncated", data[:end]
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for i in range(500):
        # Half of them in the header, where damage is subtle.
        place = rng.randrange(header if i % 2 else len(data))
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
    path = tmp_path / "file"
    path.write_bytes(data)
    expected = content(kind, read(path))
    seen = {}
    for how, damaged in mutations(data, random.Random(0)):
        if damaged == data:  # zeros moved onto zeros
            continue
        path.write_bytes(damaged)
        found = attempt(kind, read, path, expected)
        seen[how, found] = seen.get((how, found), 0) + 1
    assert seen["truncated", "refused"] > 200
    assert ("truncated", "same") not in seen
    # What is not refused stands in the header twice, and once is enough.
    assert seen["flipped", "refused"] > 400
    assert ("moved", "same") not in seen


def rewritten(data, change):
    """The file with another description, its checksum right."""
    header, arrays = parted(data)
    said = header["__metadata__"]
    said["content"] = json.dumps(change(json.loads(said["content"])))
    said["crc32"] = str(zlib.crc32(said["content"].encode()))
    return joined(header, arrays)


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
def test_a_description_of_wrong_types_is_refused(kind, whole, tmp_path):
    """Any node replaced by any odd value, or gone."""
    data, read = whole[kind]
    path = tmp_path / "file"
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


def hostile(data, sprung):
    """``{what: bytes}`` of files made to do harm."""
    header, arrays = parted(data)
    first = min(
        (name for name in header if name != "__metadata__"),
        key=lambda name: header[name]["data_offsets"],
    )
    bits = [name for name in header if name.startswith("masks:")]

    def headed(**changes):
        """The file with other fields of its first array in the header."""
        return joined({**header, first: {**header[first], **changes}}, arrays)

    def said(**changes):
        """The file with another description of itself."""
        metadata = {**header["__metadata__"], **changes}
        return joined({**header, "__metadata__": metadata}, arrays)

    def described(name=first, **changes):
        """The file with another description of an array."""
        part, _, key = name.partition(":")

        def change(content):
            content["parts"][part][key].update(changes)
            return content

        return rewritten(data, change)

    begin, end = header[first]["data_offsets"]
    rest = {name: one for name, one in header.items() if name != first}
    deep = "[" * 100_000
    text = json.dumps(header)
    again = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    twice = f"{text[:-1]}, {json.dumps(first)}: {json.dumps(again)}}}"
    archive_of_arrays = io.BytesIO()
    np.savez(archive_of_arrays, a=np.ones(3))
    return {
        "raw pickle": pickle.dumps(Trap(sprung)),
        "pickles for an array": joined(
            header, pickle.dumps(Trap(sprung)).ljust(len(arrays), b"\0")
        ),
        "objects": described(dtype="object"),
        "a type of code": described(dtype="__import__('os').system('true')"),
        "a type of several": described(dtype="f4,f4"),
        "no type": described(dtype=None),
        "declared 4 TB": described(shape=[2**42]),
        "declared overflow": described(shape=[2**62, 4]),
        "declared negative": described(shape=[-1, -8 * (end - begin)]),
        "declared dimensions": described(shape=[1] * 100),
        "header of 4 TB": headed(shape=[2**40]),
        "header of an overflow": headed(shape=[2**62, 2**62, 4]),
        "header of a negative": headed(shape=[-1]),
        "header of an unknown type": headed(dtype="PICKLE"),
        "header of a type that NumPy lacks": headed(
            dtype="F8_E4M3", shape=[end - begin]
        ),
        "offsets beyond the file": headed(data_offsets=[begin, 2**60]),
        "offsets that overlap": joined({**header, "x": header[first]}, arrays),
        "offsets with a hole": joined(rest, arrays),
        "array twice": joined(twice.encode(), arrays),
        "array more": joined(
            {
                **header,
                "../../evil": {
                    "dtype": "U8",
                    "shape": [3],
                    "data_offsets": [len(arrays), len(arrays) + 3],
                },
            },
            arrays + b"abc",
        ),
        "array less": joined(
            {
                "__metadata__": header["__metadata__"],
            },
            b"",
        ),
        "header longer than the file": struct.pack("<Q", 2**26) + data[8:],
        "header of an exabyte": struct.pack("<Q", 2**62) + data[8:],
        "header nested deep": joined(
            text[:-1].encode() + f', "x": {deep}'.encode(), arrays
        ),
        "header of a number": joined(3, arrays),
        "header of a list": joined([], arrays),
        "description of a number": said(content="3", crc32=crc("3")),
        "description of a list": said(content="[]", crc32=crc("[]")),
        "description nested deep": said(content=deep, crc32=crc(deep)),
        "description is gone": joined(
            {k: v for k, v in header.items() if k != "__metadata__"}, arrays
        ),
        "description without its checksum": said(content=" {}"),
        "other format": said(format="zip"),
        "newer": said(format_version="2"),
        "checksum of another array": described(crc32=1),
        "plain safetensors": save({"a": np.ones(3)}),
        "npz": archive_of_arrays.getvalue(),
        **{
            f"bits of 4 TB, {i}": described(name, shape=[2**45])
            for i, name in enumerate(bits)
        },
        "empty": b"",
        "text": b"not a ticket\n" * 100,
    }


def crc(text):
    return str(zlib.crc32(text.encode()))


@pytest.mark.parametrize("kind", ["ticket", "snapshot"])
def test_a_hostile_file_is_refused_and_costs_nothing(kind, whole, tmp_path):
    data, read = whole[kind]
    path, sprung = tmp_path / "file", tmp_path / "sprung"
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
    assert {p.name for p in tmp_path.iterdir()} == {"file"}
    # The trap is one: who unpickles it springs it.
    pickle.loads(files["raw pickle"])
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
            archive.write(tmp_path / "f", "ticket", {}, {"masks": {"a": array}})
    assert not list(tmp_path.iterdir())


# Disks that are full, directories that cannot be written.


@contextlib.contextmanager
def full_disk(room):
    """No file may grow beyond so many bytes: a real failure of a write."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_full_disk_leaves_the_old_file_whole(room, tmp_path):
    model = mlp()
    old, new = tt.prune(model, 0.5), tt.prune(model, 0.9)
    old.save(tmp_path / "ticket")
    with full_disk(room), pytest.raises(OSError, match="ticket.*too large"):
        new.save(tmp_path / "ticket")
    assert [p.name for p in tmp_path.iterdir()] == ["ticket"]
    assert tt.Ticket.load(tmp_path / "ticket").kept == old.kept


def test_a_file_that_may_not_be_read_says_so(whole, tmp_path):
    path = tmp_path / "ticket"
    path.write_bytes(whole["ticket"][0])
    path.chmod(0)
    child = os.fork()
    if not child:
        if os.geteuid() == 0:  # root may read anything
            os.chmod(tmp_path, 0o777)
            os.setuid(65534)
        try:
            tt.Ticket.load(path)
        except PermissionError as error:
            os._exit(0 if "ermission denied" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_is_written_replaces_the_old_file_in_one_step(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o600)
    before = os.umask(0o027)
    try:
        with archive.replacing(path) as temporary:
            temporary.write_text("new")
            temporary.chmod(0o600)  # as some writers do
            assert path.read_text() == "old"
            assert temporary.stat().st_dev == path.stat().st_dev
    finally:
        os.umask(before)
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", [None, 0o600, 0o664, 0o444])
def test_a_mode_is_kept_and_a_new_file_has_the_usual_one(mode, tmp_path):
    path = tmp_path / "file"
    if mode is not None:
        path.write_text("old")
        path.chmod(mode)
    before = os.umask(0o027)
    try:
        with archive.replacing(path) as temporary:
            temporary.write_text("new")
            temporary.chmod(0o600)  # as some writers do
    finally:
        os.umask(before)
    expected = 0o640 if mode is None else mode
    assert path.stat().st_mode & 0o777 == expected
    tt.prune(mlp(), 0.5).save(path)
    assert path.stat().st_mode & 0o777 == expected


def killed(path, what):
    """A process that is killed while it writes to ``path``."""
    child = os.fork()
    if not child:
        with archive.replacing(path) as made:
            if what == "file":
                made.write_text("half of it")
            else:
                made.mkdir()
                (made / "inner").write_text("half of it")
            if what == "moved":  # as between the two steps of a folder
                os.replace(path, made.parent / "old")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


@pytest.mark.parametrize("what", ["file", "folder", "moved"])
def test_what_a_killed_writer_left_goes_at_the_next_run(what, tmp_path):
    path = tmp_path / ("a" * 255)  # as long as names can be
    if what == "moved":
        path.mkdir()
        (path / "inner").write_text("old")
    # A writer that is at work, and one to another path.
    with (
        archive.replacing(path) as at_work,
        archive.replacing(tmp_path / ("a" * 254)) as other,
    ):
        (at_work.mkdir if what == "moved" else at_work.touch)()
        other.touch()
        killed(path, what)
        assert len([*tmp_path.iterdir()]) == 3
        if what == "moved":
            assert not path.exists()
            with pytest.raises(ZeroDivisionError), archive.replacing(path):
                assert (path / "inner").read_text() == "old"
                raise ZeroDivisionError
            assert (path / "inner").read_text() == "old"
        else:
            with archive.replacing(path) as temporary:
                temporary.touch()
        # What a killed one left is gone; those at work are not disturbed.
        assert len([*tmp_path.iterdir()]) == 3
        assert at_work.exists() and other.exists()
    assert len([*tmp_path.iterdir()]) == 2


def test_what_exists_stays_with_overwrite_false(tmp_path):
    model = mlp()
    path, link = tmp_path / "ticket", tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    ticket, snapshot = tt.prune(model, 0.5), tt.Snapshot.take(model)
    ticket.save(path, overwrite=False)
    for one in (ticket, snapshot):
        for there in (path, link, tmp_path):
            with pytest.raises(FileExistsError, match=there.name):
                one.save(there, overwrite=False)
        one.save(path)
    with pytest.raises(FileExistsError, match="a file does not take its place"):
        ticket.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "ticket"]


@pytest.mark.parametrize("made", ["nothing", "file", "folder"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_file_and_nothing_else(made, error, tmp_path):
    (tmp_path / "old").write_text("old")
    for path in (tmp_path / "old", tmp_path / "new" / "deep"):
        with pytest.raises(error), archive.replacing(path) as temporary:
            if made == "file":
                temporary.write_text("half of it")
            elif made == "folder":
                (temporary / "inner").mkdir(parents=True)
                (temporary / "inner" / "file").write_text("half of it")
            raise error
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_a_folder_appears_whole_and_its_parents_with_it(tmp_path):
    path = tmp_path / "new" / "deep" / "folder"
    with archive.replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("whole")
        assert not (tmp_path / "new").exists()
    assert (path / "file").read_text() == "whole"
    assert [p.name for p in tmp_path.rglob("*")] == [
        "new",
        "deep",
        "folder",
        "file",
    ]


def test_a_link_stays_one_and_what_it_points_at_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    for name in ("there", "missing"):
        target, link = tmp_path / "far" / name, tmp_path / f"to_{name}"
        if name == "there":
            target.write_text("old")
        link.symlink_to(target)
        with archive.replacing(link) as temporary:
            temporary.write_text("new")
        assert link.is_symlink() and target.read_text() == "new"
    assert len([*tmp_path.rglob("*")]) == 5
