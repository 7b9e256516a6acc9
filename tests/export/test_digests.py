"""No byte of an export changes without being told."""

import random
import shutil
import subprocess

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.export.conftest import prune_at_random
from tf_tickets.__main__ import main
from tf_tickets.export.digests import PLACE


def wide(units=600):
    model = keras.Sequential(
        [keras.Input((80,)), keras.layers.Dense(units, name="layer")],
        name="wide",
    )
    return prune_at_random(model, 0.05)


@pytest.fixture(scope="module", params=["dense", "packed", "litert"])
def made(request, tmp_path_factory):
    """An export of each kind that is left whole."""
    if request.param == "litert":
        pytest.importorskip("ai_edge_litert")
    path = tmp_path_factory.mktemp("made") / "export"
    return tt.export.write(wide(), path, format=request.param).path


def copied(made, tmp_path, name="elsewhere"):
    copy = shutil.copytree if made.is_dir() else shutil.copy
    copy(made, tmp_path / name)
    return tmp_path / name


def files_of(path):
    return (
        [path]
        if path.is_file()
        else sorted(f for f in path.rglob("*") if f.is_file())
    )


def test_every_flip_is_found_in_every_file(made, tmp_path):
    path = copied(made, tmp_path)
    assert tt.export.verify(path).others == ()
    rng = random.Random(0)
    for file in files_of(path):
        whole = file.read_bytes()
        size = len(whole)
        near = {0, 1, size // 2, size - 1, size - 2, size - 64, size - 70}
        for place in {*near, *(rng.randrange(size) for _ in range(40))}:
            bad = bytearray(whole)
            bad[place % size] ^= 1 << rng.randrange(8)
            file.write_bytes(bad)
            with pytest.raises(ValueError, match=file.name):
                tt.export.verify(path)
        for cut in (whole[:-1], whole + b"\n", b""):
            file.write_bytes(cut)
            with pytest.raises(ValueError, match=file.name):
                tt.export.verify(path)
        file.write_bytes(whole)
    tt.export.verify(path)


def test_a_copy_under_another_name_stays_whole(made, tmp_path):
    path = copied(made, tmp_path, "größer 层")
    verified = tt.export.verify(path)
    assert len(verified.digests) == max(1, len(files_of(path)) - 1)
    assert str(verified).startswith("verified: ")


def test_the_digests_need_no_library(made, tmp_path):
    """The list is one for `sha256sum`; the end of a file is a plain text."""
    path = copied(made, tmp_path)
    check = ["sha256sum", "--check", "--strict", str(PLACE)]
    if path.is_file():
        check = ["sh", "-c", f"head -c -64 {path} | sha256sum"]
    said = subprocess.run(
        check, cwd=tmp_path if path.is_file() else path, capture_output=True
    )
    assert said.returncode == 0, said.stderr
    if path.is_file():
        assert path.read_bytes()[-64:] == said.stdout[:64]
    else:
        assert said.stdout.count(b": OK") == len(files_of(path)) - 1


def test_missing_files_and_other_files_are_named(tmp_path):
    path = tt.export.saved_model(wide(), tmp_path / "m").path
    later = path / "assets.extra" / "tf_serving_warmup_requests"
    later.write_bytes(b"requests")
    verified = tt.export.verify(path)
    assert verified.others == ("assets.extra/tf_serving_warmup_requests",)
    assert "not covered: assets.extra/tf_serving" in str(verified)
    (path / "variables" / "variables.index").unlink()
    with pytest.raises(ValueError, match="variables.index is missing"):
        tt.export.verify(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tt.export.verify(tmp_path / "nowhere")


def test_what_has_no_digests_is_no_verified_export(tmp_path, capsys):
    path = tt.export.saved_model(wide(), tmp_path / "m").path
    (path / PLACE).unlink()
    with pytest.raises(ValueError, match="no digests"):
        tt.export.verify(path)
    assert main(["inspect", str(path)]) == 0
    assert "not verified: " in capsys.readouterr().out
    file = tmp_path / "file"
    for content in (b"", b"x" * 500):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="file' has no digests"):
            tt.export.verify(file)


def test_whatever_reads_an_export_refuses_a_damaged_one(tmp_path, capsys):
    model = wide()
    path = tt.export.saved_model(model, tmp_path / "m", format="packed").path
    assert main(["inspect", str(path)]) == 0
    assert "verified: 5 files" in capsys.readouterr().out
    graph = path / "saved_model.pb"
    whole = graph.read_bytes()
    graph.write_bytes(whole.replace(b"serve", b"nerve", 1))
    for read in (
        tt.export.load_sparse,
        tt.export.unpack,
        tt.export.report,
        tt.export.verify,
    ):
        with pytest.raises(ValueError, match=r"saved_model\.pb is damaged"):
            read(path)
    assert main(["inspect", str(path)]) == 1
    assert "saved_model.pb is damaged" in capsys.readouterr().err


def test_an_export_takes_the_place_of_an_older_one(tmp_path):
    path = tmp_path / "m"
    first = tt.export.saved_model(wide(), path, format="packed")
    (path / "assets" / "old").mkdir(parents=True)
    second = tt.export.saved_model(wide(700), path)
    assert tt.export.verify(path).others == ()
    assert not (path / "assets" / "old").exists()
    assert first.total("parameters") < second.total("parameters")
    assert tt.export.unpack(path).layers[0].units == 700
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    with pytest.raises(FileExistsError, match="overwrite=False"):
        tt.export.saved_model(wide(), path, overwrite=False)
    assert tt.export.unpack(path).layers[0].units == 700


def test_a_failure_leaves_the_older_export(tmp_path, monkeypatch):
    path = tmp_path / "m"
    tt.export.saved_model(wide(), path)

    def broken(source, target):
        target.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setitem(tt.export.FORMATS, "broken", broken)
    with pytest.raises(KeyboardInterrupt):
        tt.export.write(wide(), path, format="broken")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert len(tt.export.verify(path).digests) == 5


@pytest.mark.parametrize("format", ["dense", "litert"])
def test_a_folder_of_somebody_is_never_replaced(format, tmp_path):
    if format == "litert":
        pytest.importorskip("ai_edge_litert")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else than an export"):
        tt.export.write(wide(), tmp_path / "home", format=format)
    assert (tmp_path / "home" / "thesis").read_text() == "years of work"
    (tmp_path / "file").write_text("a file")
    if format == "dense":
        with pytest.raises(FileExistsError, match="a folder does not take"):
            tt.export.write(wide(), tmp_path / "file", format=format)
        assert (tmp_path / "file").read_text() == "a file"
        (tmp_path / "empty").mkdir()
        tt.export.write(wide(), tmp_path / "empty", format=format)
    assert len([*tmp_path.iterdir()]) == 2 + (format == "dense")


def test_a_litert_file_still_runs_and_says_what_it_is(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = wide()
    path = tmp_path / "m.tflite"
    for _ in range(2):  # the second takes the place of the first
        tt.export.write(model, path, format="litert")
        run = tt.export.FORMATS["litert"].load(path)
        x = np.ones((1, 80), "float32")
        np.testing.assert_allclose(run(x)[0], model(x), rtol=1e-4, atol=1e-5)
        assert tt.export.report(path).format == "litert"
    with pytest.raises(FileExistsError):
        tt.export.litert(model, path, overwrite=False)
