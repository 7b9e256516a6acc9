"""What the documentation shows runs."""

import dataclasses
import doctest
import importlib
import pkgutil
import re
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

import tf_tickets as tt

ROOT = Path(__file__).parent.parent
MODULES = [
    "tf_tickets",
    *(m.name for m in pkgutil.walk_packages(tt.__path__, "tf_tickets.")),
]
PAGES = [
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize(
    "name", [m for m in MODULES if not m.endswith("__main__")]
)
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(
        module,
        extraglobs={"keras": keras, "np": np},
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    """Blocks marked ``python`` share one namespace, as a reader's session."""
    run_blocks(page, tmp_path, monkeypatch)


def run_blocks(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    tables: tuple = (tt.pruning.CRITERIA, tt.pruning.SCOPES)
    tables += (tt.pruning.PATTERNS, tt.export.FORMATS)
    before = [dict(table) for table in tables]
    session = {"__name__": "page"}
    try:
        for block in blocks:
            exec(compile(textwrap.dedent(block), str(page), "exec"), session)
    finally:  # what the page entered is gone after it
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)


def test_the_readme_runs_and_can_be_run_twice(tmp_path, monkeypatch):
    """In one directory; again with fewer epochs, which is not the point."""
    run_blocks(ROOT / "README.md", tmp_path, monkeypatch)
    text = re.sub(
        r"\b(epochs\w*)=\d+", r"\1=1", (ROOT / "README.md").read_text()
    ).replace("end_step=20", "end_step=2")
    page = tmp_path / "README.md"
    page.write_text(text)
    run_blocks(page, tmp_path, monkeypatch)


def test_every_page_is_in_the_navigation_and_its_links_lead_somewhere():
    pages = {page.stem: page for page in (ROOT / "docs").glob("*.md")}
    listed = pages["index"].read_text().split()
    assert not {name for name in pages if name not in {"index", *listed}}
    dead = [
        f"{page.name}: {target}"
        for page in pages.values()
        for target in re.findall(
            r"\]\((?!https?://|#)([^)#]+)", page.read_text()
        )
        if not (page.parent / target).exists()
    ]
    assert not dead


def test_every_public_name_has_an_example():
    missing = []
    rooms = (tt, tt.callbacks, tt.pruning, tt.export, tt.layers)
    for room in (*rooms, tt.structured, tt.retraining, tt.analysis):
        for name in room.__all__:
            thing = getattr(room, name)
            if dataclasses.is_dataclass(thing):
                continue  # results, shown by what returns them
            if callable(thing) and ">>>" not in (thing.__doc__ or ""):
                missing.append(f"{room.__name__}.{name}")
    assert not missing
