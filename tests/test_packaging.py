"""What is installed: the marker of types, and a page that an index can show."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parent.parent
RELATIVE = re.compile(r"\]\((?!https?://|#)")


@pytest.fixture
def setup(monkeypatch):
    """What setup.py says, and its names."""
    said = {}
    monkeypatch.setattr(setuptools, "setup", said.update)
    monkeypatch.chdir(ROOT)
    names = runpy.run_path(str(ROOT / "setup.py"))
    return said, names


def test_no_link_of_the_page_on_an_index_is_dead(setup):
    said, names = setup
    readme = (ROOT / "README.md").read_text()
    assert RELATIVE.search(readme), "links of a repository are relative"
    assert not RELATIVE.search(said["long_description"])
    assert said["long_description_content_type"] == "text/markdown"
    there = names["description"](readme, "https://example.org/tickets")
    assert not RELATIVE.search(there)
    assert "](https://example.org/tickets/blob/main/docs/masks.md)" in there
    assert "](https://example.org/tickets/raw/main/docs/pictures/" in there


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_files_that_a_page_links_to_are_there(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (ROOT / target).exists(), target


def test_the_wheel_holds_every_module_and_the_marker_of_types(tmp_path):
    pytest.importorskip("wheel")
    source = tmp_path / "source"
    files = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tf_tickets", source / "tf_tickets", ignore=files)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run(
        [sys.executable, "-c", build],
        cwd=source,
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {n for n in archive.namelist() if n.startswith("tf_tickets/")}
        [name] = [n for n in archive.namelist() if n.endswith("/METADATA")]
        metadata = archive.read(name).decode()
    modules = (ROOT / "tf_tickets").rglob("*.py")
    assert packed == {
        "tf_tickets/py.typed",
        *(str(path.relative_to(ROOT)) for path in modules),
    }
    assert "Classifier: Typing :: Typed" in metadata


def test_a_strict_user_sees_the_types_of_public_names(tmp_path):
    pytest.importorskip("mypy")
    site = tmp_path / "site"
    site.mkdir()
    (site / "tf_tickets").symlink_to(ROOT / "tf_tickets")
    user = tmp_path / "user.py"
    user.write_text(
        textwrap.dedent("""
        from typing import Any

        import tf_tickets as tt
        from tf_tickets.analysis import SanityReport, flops, sanity_checks

        def use(model: Any) -> float:
            ticket = tt.prune(model, 0.5, criterion="synflow", verbose=0)
            imp = tt.callbacks.IterativeMagnitudePruning(
                target_sparsity=0.9, rounds=2, epochs_per_round=1)
            reveal_type(ticket)
            reveal_type(imp.ticket)
            reveal_type(imp.epochs)
            reveal_type(tt.Ticket.load("file"))
            reveal_type(tt.export.saved_model(model, "directory"))
            reveal_type(flops(model).macs)
            reveal_type(tt.Snapshot.take(model))
            report: SanityReport = sanity_checks(ticket, model, data=(1, 2))
            tt.prune(model, "half")
            tt.prune(model, 0.5, verbose="loud")
            return report.density
        """)
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-incremental",
            "user.py",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    types = re.findall(r'Revealed type is "(.+)"', done.stdout)
    assert [name.removeprefix("tf_tickets.") for name in types] == [
        "ticket.Ticket",
        "ticket.Ticket | None",
        "int",
        "ticket.Ticket",
        "export.report.Report",
        "int",
        "snapshot.Snapshot",
    ], done.stdout
    errors = re.findall(r"error: (.+)", done.stdout)
    assert len(errors) == 2 and all("[arg-type]" in e for e in errors), errors
