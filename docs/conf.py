"""The documentation site: `make docs` builds it into site/, strictly.

Guides are the pages of this folder. Their blocks of Python are run in order
and what they say and draw is shown below each; a page whose blocks have not
changed is not run again. The reference is made from the names that each room
exports.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import latex2mathml.converter  # noqa: E402
from docutils import nodes  # noqa: E402
from sphinx.pycode import ModuleAnalyzer  # noqa: E402

import tf_tickets as tt  # noqa: E402
from tf_tickets.zoo import (  # noqa: E402
    datasets,
    experiments,
    models,
    recipes,
)

project = "tf_tickets"
author = "the authors of tf_tickets"
copyright = author
release = version = tt.__version__
html_title = f"tf_tickets {version}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_math_renderer = "mathml"
html_theme_options = {"navigation_with_keys": True}
# Examples, not sessions: the sign of the shell is not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# A name of the library in backticks is a link, as in docstrings.
default_role = "autolink"
nitpicky = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# What a class says of an attribute is not said twice where it is a property.
napoleon_use_ivar = True
napoleon_preprocess_types = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build/docs/cache")
nb_execution_in_temp = True  # pages write files
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
# What libraries remark on is not shown.
nb_output_stderr = "remove"

# Rooms that users import from, in the order in which they meet them.
ROOMS = [
    tt,
    tt.callbacks,
    tt.pruning,
    tt.layers,
    tt.structured,
    tt.retraining,
    tt.analysis,
    tt.export,
    tt.data,
    tt.distribute,
    tt.network,
    models,
    datasets,
    recipes,
    experiments,
]


def exported(room: Any) -> list[str]:
    """The names that a room exports; those of its own if it is one file."""
    names = getattr(room, "__all__", None)
    if names is None:
        names = [
            name
            for name, thing in vars(room).items()
            if not name.startswith("_")
            and getattr(thing, "__module__", None) == room.__name__
        ]
    return [
        name
        for name in names
        if not inspect.ismodule(getattr(room, name))
        and not name.startswith("__")
    ]


def table_text(room: str, name: str) -> str:
    """What stands behind a table, in the module that makes it."""
    for module in sorted(sys.modules):
        if module == room or module.startswith(f"{room}."):
            found = ModuleAnalyzer.for_module(module).find_attr_docs()
            if ("", name) in found:
                return "\n".join(found["", name])
    return ""


def make_reference(app: Any) -> None:
    """A page for each room, with every name that it exports."""
    folder = HERE / "reference"
    folder.mkdir(exist_ok=True)
    pages = {}
    missing = []
    for room in ROOMS:
        name = room.__name__
        lines = [name, "=" * len(name), "", f".. automodule:: {name}"]
        lines += ["   :no-members:", "", f".. currentmodule:: {name}", ""]
        names = exported(room)
        called = [n for n in names if callable(getattr(room, n))]
        lines += [".. autosummary::", "", *(f"   {n}" for n in called), ""]
        for one in names:
            thing = getattr(room, one)
            if callable(thing):
                kind = "class" if inspect.isclass(thing) else "function"
                lines += [f".. auto{kind}:: {one}", ""]
                said = thing.__doc__
            else:
                said = table_text(name, one)
                lines += [f".. data:: {one}", ""]
                lines += [*(f"   {line}" for line in said.splitlines()), ""]
            if not (said or "").strip():
                missing.append(f"{name}.{one}")
        pages[f"{name}.rst"] = "\n".join(lines)
    if missing:
        raise SystemExit(f"These names are not documented: {missing}")
    toc = "\n".join(f"   {name.removesuffix('.rst')}" for name in pages)
    pages["index.rst"] = f"Reference\n=========\n\n.. toctree::\n\n{toc}\n"
    for name, text in pages.items():
        path = folder / name
        # What is the same keeps its date, and is not read again.
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def as_notebook(app: Any, name: str, source: list[str]) -> None:
    """Let the blocks of Python be run; put the README in its place.

    A public name in backticks becomes a link.
    """
    if name == "index":
        readme = (HERE.parent / "README.md").read_text()
        source[0] = readme.replace("](docs/", "](") + source[0]
    for top in ("CONTRIBUTING", "CHANGELOG"):
        source[0] = re.sub(
            rf"\]\((\.\./)?{top}\.md", f"]({top.lower()}.md", source[0]
        )
    source[0] = re.sub(r"(?<!`)`(tt\.[\w.]+)`(?!`)", _link, source[0])
    if name in EXECUTED:
        source[0] = (
            "---\nfile_format: mystnb\nkernelspec: {name: python3}\n---\n"
            + source[0].replace("```python\n", "```{code-cell}\n")
        )


def _link(match: re.Match[str]) -> str:
    name = match[1].replace("tt.", "tf_tickets.", 1)
    return f"{{py:obj}}`{match[1]} <{name}>`" if name in NAMES else match[0]


def _quoted(match: re.Match[str]) -> str:
    """What is no name of the library stands as it is written."""
    text = match[1]
    is_known = text.startswith("tf_tickets") or text in SHORT
    return match[0] if is_known else f"``{text}``"


def as_restructured(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Formulas of docstrings stand between dollars, sizes between bars."""
    text = "\n".join(lines)
    lines[:] = re.sub(
        r"(?<![`:\w])`([^`]+)`(?![`_])", _quoted, text
    ).splitlines()
    for index, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            line = re.sub(r"\$\$(.+)\$\$", r".. math:: \1", line)
            line = re.sub(r"\$([^$]+)\$", r":math:`\1`", line)
            lines[index] = re.sub(r"(?<![`\\])\|(?=[^`]*(`[^`]*`[^`]*)*$)",
                                  r"\|", line)  # fmt: skip


EXECUTED = {
    path.stem for path in HERE.glob("*.md") if "```python\n" in path.read_text()
}


NAMES = {
    f"{room.__name__}.{name}" for room in ROOMS for name in exported(room)
} | {room.__name__ for room in ROOMS}
SHORT = {name.rpartition(".")[2] for name in NAMES}


def as_mathml(translator: Any, node: Any) -> None:
    """A formula that browsers show by themselves, without a script."""
    block = isinstance(node, nodes.math_block)
    formula = latex2mathml.converter.convert(
        node.astext(), display="block" if block else "inline"
    )
    translator.body.append(f"<p>{formula}</p>\n" if block else formula)
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (as_mathml, None), (as_mathml, None))
    app.connect("builder-inited", make_reference)
    app.connect("source-read", as_notebook)
    app.connect("autodoc-process-docstring", as_restructured)
