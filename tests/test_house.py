"""The floors of the house, and what an import may cost."""

import ast
import collections
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tf_tickets"
# A module imports from floors below its own, or from its own.
FLOORS = [
    {"version"},
    {
        "archive",
        "checks",
        "data",
        "distribute",
        "figures",
        "progress",
        "selection",
        "timing",
        "tables",
        "tracing",
    },
    {"initialization", "foreign", "masking", "masks", "snapshot"},
    {"ticket"},
    {"network", "loss"},
    {"pruning"},
    {"layers", "structured", "retraining", "analysis"},
    {"callbacks", "export"},
    {"zoo"},
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Processes of their own, which must set the environment first, and what makes
# thousands of the smallest models or graphs.
ALONE = {
    "distributed_worker.py",
    "graphs.py",
    "machine.py",
    "serve_artifacts.py",
}
# What is tested through every room, or through the whole of one.
WHOLE = {
    "test_at_home.py",
    "test_bad_input.py",
    "test_benchmarks.py",
    "test_claims.py",
    "test_docs.py",
    "test_examples.py",
    "test_faults.py",
    "test_gallery.py",
    "test_house.py",
    "test_leaks.py",
    "test_models.py",
    "test_packaging.py",
    "test_strategies.py",
    "test_web_example.py",
    "callbacks/test_beside.py",
    "export/test_networks.py",
    "pruning/test_golden.py",
    "stress/test_graphs.py",
    "stress/test_machine.py",
}


def imported(path):
    """Names of the tf_tickets rooms that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"tf_tickets.{alias.name}" for alias in node.names]
                if node.module == "tf_tickets"
                else [node.module]
            )
        else:
            continue
        for name in names:
            if name.startswith("tf_tickets."):
                yield name.split(".")[1]


@pytest.mark.parametrize(
    "path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_down_the_floors_only(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return  # the door, which sees every room
    assert room in FLOOR, f"{room} has no floor: give it one in FLOORS"
    for target in imported(path):
        assert target in FLOOR, f"{path.name} imports unknown {target}"
        assert FLOOR[target] <= FLOOR[room], f"{room} imports up: {target}"


def modules_imported(path):
    """The modules of the package that a module imports when it is loaded."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == PACKAGE.name:
                file = ROOT / (name.replace(".", "/") + ".py")
                if file in MODULES:
                    found.add(file)
    return found


def test_no_module_imports_itself_in_a_circle():
    left = {path: modules_imported(path) for path in MODULES}
    while True:
        free = [path for path, wants in left.items() if not wants & left.keys()]
        if not free:
            break
        for path in free:
            del left[path]
    assert not left, sorted(str(p.relative_to(ROOT)) for p in left)


def test_contributors_read_of_the_floors_that_are_tested():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE)
    read = {
        int(number): set(re.findall(r"`(\w+)`", rooms))
        for number, rooms in rows
    }
    assert read == dict(enumerate(FLOORS, 1))


def test_tests_stand_in_the_rooms_of_what_they_test():
    """``tests/room/test_module.py`` for ``tf_tickets/room/**/module.py``."""
    files = {
        path.relative_to(ROOT / "tests")
        for path in TESTS
        if path.name.startswith("test_")
    }
    assert WHOLE <= {str(file) for file in files}
    homeless = []
    for file in files:
        name = file.stem.removeprefix("test_")
        pattern = name if file.parent.name == "" else f"**/{name}"
        room = PACKAGE / file.parent
        found = [*room.glob(f"{pattern}.py"), *room.glob(f"{pattern}/")]
        # The tests of a folder may share the folder's name.
        if not found and room.name != name and str(file) not in WHOLE:
            homeless.append(str(file))
    assert not homeless


def classes(path):
    """``(class, names of its bases, name it is registered by)`` of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
            registered = None
            for one in node.decorator_list:
                text = ast.unparse(one)
                if "register_keras_serializable" in text:
                    own = re.search(r"name='(\w+)'", text)
                    registered = own[1] if own else node.name
            yield node.name, bases, registered


def test_the_same_model_is_not_written_twice():
    """One class a name, so that the gallery is where one looks first."""
    models = {"Model", "Sequential", "Functional"}
    everything = [(path, *found) for path in TESTS for found in classes(path)]
    for _ in range(3):  # of a class of a class
        models |= {name for _, name, bases, _ in everything if bases & models}
    places = collections.defaultdict(list)
    for path, name, bases, registered in everything:
        if bases & models:
            places[name].append(path.name)
        elif registered:  # a second one would replace the first
            places[registered].append(path.name)
    assert {"Subclassed", "Around", "Projection"} <= places.keys()
    assert not {name: at for name, at in places.items() if len(at) > 1}


def test_models_are_shared_by_the_gallery_alone():
    """A model that two files of tests want has its place in the gallery."""
    for path in TESTS:
        if path.name.startswith(("test_", "gallery")) or path.name in ALONE:
            continue
        made = [
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and re.search(r"\.Input\(|keras\.Model\)", ast.unparse(node))
        ]
        assert not made, path


@pytest.fixture(scope="module")
def imported_alone():
    """``(refusal, of the library, of the zoo)``, as a new process tells."""
    # Keras itself looks for matplotlib and scikit-learn: hide what it found,
    # so that only an import by the library can bring them back.
    script = """
        import os, sys, keras
        optional = ("tensorflow_model_optimization", "tensorflow_datasets",
                    "matplotlib", "sklearn", "tf_keras")
        for name in list(sys.modules):
            if name.split(".")[0] in optional:
                del sys.modules[name]

        def loaded():
            names = {name.split(".")[0] for name in sys.modules}
            return sorted(names & set(optional))

        backend = keras.backend.backend
        keras.backend.backend = lambda: "jax"
        try:
            import tf_tickets
        except ImportError as error:
            print(error)
        keras.backend.backend = backend
        import tf_tickets
        print(loaded(), "TF_USE_LEGACY_KERAS" in os.environ,
              "tf_tickets.zoo" in sys.modules)
        import tf_tickets.zoo
        print(loaded())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_the_library_loads_no_optional_package(imported_alone):
    _, library, zoo = imported_alone
    assert library == "[] False False"
    assert zoo == "[]"


def test_another_backend_is_refused_in_one_sentence(imported_alone):
    refusal, *_ = imported_alone
    assert refusal.startswith("tf_tickets works with the TensorFlow")


@pytest.mark.parametrize(
    "pattern",
    [
        r"keras\.src",
        r"tensorflow\.python",
        r"^\s*print\(",
        r"TODO|FIXME|XXX",
        r"^\s*assert ",
        r"os\.environ\[.*\] *=",
    ],
)
def test_the_library_does_without(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
        and (path.name != "__main__.py" or "print" not in pattern)
    ]
    assert not found
