"""Exports equal the model, wherever they load, and are whole or absent."""

import errno
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver

import tf_tickets as tt
from tests import gallery
from tests.conftest import compiled, mlp
from tests.export.conftest import (
    MODELS,
    close,
    make_all_sparse,
    prune_at_random,
)
from tf_tickets.export import formats, serving
from tf_tickets.export.digests import PLACE
from tf_tickets.export.report import read_manifest
from tf_tickets.selection import named_weights

FORMATS = ("dense", "packed", "sparse", "auto")
WAYS = ("load", "layer", "signature", "v1")


def pack_everything(monkeypatch):
    """Small models would not gain from being packed."""
    monkeypatch.setattr(serving, "GRAPH_BYTES", 0)
    monkeypatch.setattr(serving, "TENSOR_BYTES", 0)


@pytest.fixture(autouse=True)
def _pack_everything(monkeypatch):
    pack_everything(monkeypatch)


def wide(density=0.05, units=600):
    model = keras.Sequential(
        [keras.Input((80,)), keras.layers.Dense(units)], name="wide"
    )
    return prune_at_random(model, density)


@pytest.mark.parametrize("name", MODELS)
def test_every_format_equals_the_model(name, all_sparse, tmp_path):
    model = MODELS[name]()
    if name != "int8":
        prune_at_random(model, 0.1)
    for format in ("packed", "auto"):
        path = tt.export.saved_model(model, tmp_path / format, format=format)
        loaded = tf.saved_model.load(path)
        for batch in (1, 7, 32):
            x = gallery.inputs(model, batch)
            y = loaded.serve(keras.tree.map_structure(tf.constant, x))
            # bfloat16 has 8 bits: sums in another order differ in the last.
            close(y, model(x), 1e-2 if name == "mixed" else 1e-5)
        described = read_manifest(path)
        zeros = {
            k: (v.numpy() == 0).sum() for k, v in named_weights(model).items()
        }
        for row in described["weights"]:
            if format != "auto":  # which removes dead channels
                size = np.prod(row["shape"])
                assert size - round(row["density"] * size) == zeros[row["key"]]
        packed = [row for row in described["weights"] if "packed" in row]
        assert packed


@pytest.mark.parametrize("name", ["convolutions", "sequences", "subclassed"])
def test_sparse_methods_are_used(name, all_sparse, tmp_path):
    model = prune_at_random(MODELS[name](), 0.1)
    path = tt.export.saved_model(model, tmp_path / "m", format="sparse")
    methods = {row["method"] for row in read_manifest(path)["weights"]}
    assert (
        methods
        >= {
            "convolutions": {"csr", "patches", "dense"},
            "sequences": {"csr", "dense"},
            "subclassed": {"csr"},
        }[name]
    )


@pytest.fixture(scope="module")
def served_alone(tmp_path_factory):
    """``{(model, format): (outputs, masks, directory)}`` of artifacts.

    A process without the library has left what it serves in each directory.
    """
    folder = tmp_path_factory.mktemp("artifacts")
    keras.utils.set_random_seed(0)
    ticket = tt.prune(small := compiled(mlp()), 0.75)
    ticket.apply(small)
    small.fit(np.ones((16, 8)), np.arange(16) % 4, verbose=0)
    cases = [
        ("ticket", "dense"),
        ("pairs", "packed"),
        ("pairs", "auto"),
        ("convolutions", "sparse"),
        ("text", "packed"),
    ]
    models = {
        name: prune_at_random(MODELS[name](), 0.1) for name, _ in cases[1:]
    }
    models["ticket"] = small
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        make_all_sparse(patch)
        pack_everything(patch)
        for name, format in cases:
            model, where = models[name], folder / "all" / f"{name}-{format}"
            x = gallery.inputs(model, 3)
            tt.export.saved_model(model, where / "export", format=format)
            assert [path.name for path in where.iterdir()] == ["export"]
            named = x if isinstance(x, dict) else {"x": x}
            np.savez(where / "inputs.npz", **named)
            outputs = [y.numpy() for y in keras.tree.flatten(model(x))]
            masks = ticket.masks if name == "ticket" else None
            made[name, format] = outputs, masks, where
    script = Path(__file__).with_name("serve_artifacts.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", script, folder / "all"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return made


def test_a_process_without_the_library_serves_all_formats(served_alone):
    assert {format for _, format in served_alone} == set(FORMATS)
    for outputs, _, where in served_alone.values():
        for way in WAYS:
            with np.load(where / f"{way}.npz") as file:
                found = list(file.values())
            assert len(found) == len(outputs)
            for y in outputs:
                # Signatures name and order outputs in their own way.
                alike = [f for f in found if f.shape == y.shape]
                close(alike[0], y)


def test_another_process_finds_the_zeros_of_the_ticket(served_alone):
    _, masks, where = served_alone["ticket", "dense"]
    zeros = sorted(int((~mask).sum()) for mask in masks.values())
    assert np.load(where / "zeros.npy").tolist() == zeros


def test_the_command_line_tool_reads_it(tmp_path, monkeypatch, capfd):
    path = tt.export.saved_model(wide(), tmp_path / "m", format="packed")
    tool = Path(sys.executable).with_name("saved_model_cli")
    told = [str(tool), "show", "--dir", str(path.path), "--all"]
    monkeypatch.setattr(sys, "argv", told)
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name="__main__")
    assert not ended.value.code
    said = capfd.readouterr().out
    assert "serving_default" in said and "(-1, 600)" in said


def test_endpoints_share_the_packed_weights(all_sparse, tmp_path):
    inputs = keras.Input((80,), name="x")
    code = keras.layers.Dense(300, activation="relu", name="code")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(9, name="head")(code))
    prune_at_random(model, 0.1)
    encoder = keras.Model(inputs, code)
    path = tt.export.saved_model(
        model,
        tmp_path / "m",
        format="auto",
        endpoints={
            "encode": encoder,
            "double": lambda x: 2 * model(x),
            "other": (lambda x: model(x[0]), [[tf.TensorSpec((None, 80))]]),
        },
    )
    loaded = tf.saved_model.load(path)
    assert set(loaded.signatures) == {
        "serve",
        "serving_default",
        "encode",
        "double",
        "other",
    }
    x = tf.random.normal((4, 80))
    close(loaded.encode(x), encoder(x))
    close(loaded.double(x), 2 * model(x))
    close(loaded.other([x]), model(x))
    close(loaded.signatures["encode"](x=x)["output_0"], encoder(x))


def test_two_loads_and_a_lost_one_do_not_disturb_each_other(tmp_path):
    model = wide()
    path = tt.export.saved_model(model, tmp_path / "m", format="packed")
    first = tf.saved_model.load(path)
    second = tf.saved_model.load(path)
    signature = tf.saved_model.load(path).signatures["serving_default"]
    x = tf.random.normal((2, 80))
    del first
    keras.utils.clear_session()
    close(second.serve(x), model(x))
    close(next(iter(signature(x).values())), model(x))


@pytest.mark.skipif(
    keras.version() < "3.13", reason="Keras' own GRU cannot be traced there"
)
def test_a_stateful_layer_keeps_its_state_between_calls(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((3, 8), batch_size=2),
            keras.layers.GRU(64, stateful=True),
        ]
    )
    prune_at_random(model, 0.1)
    model.layers[0].reset_states()
    x = tf.random.normal((2, 3, 8))
    served = {}
    for format in ("dense", "packed"):
        model.layers[0].reset_states()
        path = tt.export.saved_model(model, tmp_path / format, format=format)
        loaded = tf.saved_model.load(path)
        served[format] = [loaded.serve(x).numpy() for _ in range(3)]
    assert not np.allclose(served["dense"][0], served["dense"][1])
    close(served["packed"], served["dense"])


@pytest.mark.parametrize("values", ["float16", "bfloat16"])
def test_half_precision_values_halve_the_bytes(values, tmp_path):
    model = wide()
    x = tf.random.normal((2, 80))
    sizes = {}
    for stored in ("float32", values):
        path = tt.export.saved_model(
            model, tmp_path / stored, format="packed", values=stored
        )
        row = next(r for r in read_manifest(path)["weights"] if "packed" in r)
        sizes[stored] = row["packed"]["sections"][0]
    assert sizes[values] * 2 == sizes["float32"]
    loaded = tf.saved_model.load(path)
    close(loaded.serve(x), model(x), 1e-2)


def test_masks_in_force_are_enforced_once_more(data, tmp_path):
    model = mlp(hidden=256)
    ticket = tt.prune(model, sparsity=0.9)
    ticket.apply(model)
    model.set_weights([w + 1 for w in model.get_weights()])
    path = tt.export.saved_model(model, tmp_path / "m", format="packed")
    found = tt.export.load_sparse(path)
    for key, mask in ticket.masks.items():
        assert (found.masks[key] == mask).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(format="zip"), "`format` must be one of.*Received: format='zip'"),
        (dict(format="packed", values="int4"), "`values` must be one of"),
        (dict(values="float16"), "A dense export stores the weights as"),
        (dict(batch_sizes=()), "`batch_sizes` must"),
        (dict(batch_sizes=(0,)), "`batch_sizes` must"),
        (dict(batch_sizes=8), "`batch_sizes` must"),
        (dict(endpoints={"a b": len}), "`endpoints` must map"),
        (dict(endpoints={"serving_default": len}), "`endpoints` must map"),
        (dict(endpoints={"a": 3}), "`endpoints` must map"),
    ],
)
def test_bad_options_are_one_error_and_no_directory(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tt.export.saved_model(wide(), tmp_path / "sub" / "m", **options)
    assert not list(tmp_path.iterdir())


def test_values_that_do_not_fit_are_an_error(tmp_path):
    model = wide()
    model.layers[0].kernel.assign(model.layers[0].kernel * 1e8)
    with pytest.raises(ValueError, match="too large for it.*float16"):
        tt.export.saved_model(
            model, tmp_path / "m", format="packed", values="float16"
        )
    assert not list(tmp_path.iterdir())


def test_an_unbuilt_or_uncalled_model_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no weights yet"):
        tt.export.saved_model(
            keras.Sequential([keras.layers.Dense(3)]), tmp_path / "m"
        )


def test_a_path_that_exists_is_left_alone(tmp_path):
    path = tmp_path / "m"
    path.mkdir()
    (path / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="which stays"):
        tt.export.saved_model(wide(), path, format="packed")
    assert [p.name for p in tmp_path.rglob("*")] == ["m", "mine"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_leaves_nothing(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        tt.export.saved_model(wide(), tmp_path / "m", format="packed")
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


# No user, root included, can make a directory there.
@pytest.mark.parametrize("place", ["/proc/tickets/run", "/proc/self/tickets"])
def test_a_directory_that_cannot_be_made_is_named(place):
    model = compiled(mlp())
    before = model.get_weights()
    with pytest.raises(OSError, match="/proc"):
        tt.export.saved_model(model, place)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_parent_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError):
        tt.export.saved_model(wide(), tmp_path / "file" / "m")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("format", ["dense", "packed"])
def test_a_write_that_fails_leaves_nothing(format, tmp_path):
    # A real failure, inside TensorFlow: no file may grow beyond a kilobyte.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="could not be written|too large"):
            tt.export.saved_model(wide(), tmp_path / "m", format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["dense", "packed"])
@pytest.mark.parametrize("failing", ["tensorflow", "manifest", "rename"])
def test_a_full_disk_leaves_nothing(format, failing, tmp_path, monkeypatch):
    def full(*_, **__):
        if failing == "tensorflow":
            raise tf.errors.ResourceExhaustedError(
                None, None, "No space left on device"
            )
        raise OSError(errno.ENOSPC, "No space left on device")

    owner, name = {
        "tensorflow": (tf.saved_model, "save"),
        "manifest": (formats, "write_manifest"),
        "rename": (os, "replace"),
    }[failing]
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space left on device"):
        tt.export.saved_model(wide(), tmp_path / "m", format=format)
    assert not list(tmp_path.iterdir())


def test_a_killed_export_leaves_no_directory_of_that_name(tmp_path):
    script = f"""
import os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, tf_tickets as tt
from tf_tickets.export import formats
def write(*_):
    print("now", flush=True)
    time.sleep(60)
formats.write_manifest = write
model = keras.Sequential([keras.Input((80,)), keras.layers.Dense(60)])
tt.export.saved_model(model, {str(tmp_path / "m")!r}, format="packed")
"""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert process.stdout.readline().strip() == b"now"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(0.1)
    # All there is has a hidden name; the next export removes it.
    assert all(p.name.startswith(".m.") for p in tmp_path.iterdir())
    assert list(tmp_path.iterdir())
    tt.export.saved_model(wide(), tmp_path / "m", format="packed")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_damaged_export_fails_at_load(tmp_path):
    path = tt.export.saved_model(wide(), tmp_path / "m", format="packed").path
    data = path / "variables" / "variables.data-00000-of-00001"
    whole = data.read_bytes()
    for place in np.linspace(0, len(whole) // 2, 4, dtype=int):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        data.write_bytes(damaged)
        with pytest.raises((tf.errors.OpError, ValueError)):
            tf.saved_model.load(path)
        # Whether there are digests or not.
        with pytest.raises(ValueError, match=f"not a whole.*{data.name}"):
            tt.export.load_sparse(path)
        (path / PLACE).rename(tmp_path / "digests")
        with pytest.raises(ValueError, match="not a whole export"):
            tt.export.load_sparse(path)
        (tmp_path / "digests").rename(path / PLACE)


def test_variables_of_another_export_fail_at_load(tmp_path):
    # TensorFlow's own checksums are right here; the fingerprints are not.
    paths = []
    for name, sign in (("a", 1.0), ("b", -1.0)):
        model = wide()
        model.layers[0].kernel.assign(sign * model.layers[0].kernel)
        paths.append(
            tt.export.saved_model(model, tmp_path / name, format="packed").path
        )
    (paths[0] / "variables").rename(tmp_path / "gone")
    (paths[1] / "variables").rename(paths[0] / "variables")
    with pytest.raises(tf.errors.InvalidArgumentError, match="is damaged"):
        tf.saved_model.load(paths[0])
    (paths[0] / PLACE).unlink()
    with pytest.raises(ValueError, match="is damaged"):
        tt.export.load_sparse(paths[0])


def test_a_truncated_or_foreign_directory_is_one_clear_error(tmp_path):
    path = tt.export.saved_model(wide(), tmp_path / "m", format="packed").path
    described = path / "assets.extra" / "tf_tickets.json.gz"
    described.write_bytes(described.read_bytes()[:40])
    with pytest.raises(ValueError, match="not a whole.*json.gz is damaged"):
        tt.export.load_sparse(path)
    (path / PLACE).unlink()
    with pytest.raises(ValueError, match="not a whole export"):
        tt.export.load_sparse(path)
    with pytest.raises(ValueError, match="not a whole export"):
        tt.export.load_sparse(tmp_path)
    with pytest.raises(FileNotFoundError):
        tt.export.load_sparse(tmp_path / "nowhere")


def test_what_went_past_the_mask_is_not_exported(tmp_path):
    model = mlp()
    weights = model.get_weights()
    tt.prune(model, 0.75).apply(model)
    model.set_weights(weights)
    tt.export.saved_model(model, tmp_path / "m")
    assert tt.Ticket.from_model(model).sparsity == 0.75
    assert (model.get_layer("hidden").kernel.numpy() == 0).any()


def test_bad_requests_write_nothing(tmp_path, monkeypatch):
    model = mlp()
    with pytest.raises(ValueError, match="Received: format='zip'"):
        tt.export.saved_model(model, tmp_path / "m", format="zip")
    (tmp_path / "here").mkdir()
    with pytest.raises(FileExistsError, match="here"):
        tt.export.saved_model(model, tmp_path / "here", overwrite=False)

    def full_disk(module, path, **_):
        Path(path).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        tt.export.saved_model(model, tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("pattern", ["2:4", (4, 1)])
def test_a_pattern_is_stored_by_its_groups_and_served_as_it_is(
    pattern, tmp_path
):
    """Where that saves more than its part of the graph takes."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 128)),
            keras.layers.Conv2D(160, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dense(16),
        ]
    )
    sparsity = None if pattern == "2:4" else 0.8
    ticket = tt.prune(model, sparsity, pattern=pattern, scope="layer")
    ticket.apply(model)
    path = tt.export.saved_model(model, tmp_path / "packed", format="packed")
    rows = {row["key"]: row for row in read_manifest(path)["weights"]}
    for key, mask in ticket.masks.items():
        packed = rows[key]["packed"]
        groups = mask.size // 4
        if mask.size < 100_000:  # the graph would grow by more
            assert packed["code"] in ("mask", "gaps")
            continue
        if pattern == "2:4":
            # By hand: two floats and 64 / 24 bits for each group of four.
            assert packed["code"] == "pattern"
            words = -(-groups // 24)
            assert sum(packed["sections"]) == 8 * groups + 8 * words
        else:  # the entropy of a fifth of the blocks is 0.72 bits each
            assert packed["code"] == "blocks"
            values, *places = packed["sections"]
            assert values == 4 * mask.sum()
            assert 0.72 * groups / 8 <= sum(places) <= 0.9 * groups / 8
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 128)).astype("float32")
    loaded = tf.saved_model.load(path)
    close(loaded.serve(x), model(x), 1e-5)
    again = tt.export.unpack(path)
    for mine, other in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), other.numpy())
