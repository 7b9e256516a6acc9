r"""Is this ready to be released? The wheel, in empty environments.

    pip install -e '.[release]'
    python -m benchmarks.releases
    python -m benchmarks.releases --python=3.11 --dependencies=oldest

Builds the wheel and the source distribution, has their metadata checked, and
installs the wheel for each Python with the newest and with the oldest
dependencies that it names. Each environment draws a ticket, trains it, ships
it, and reads it back; extras are installed one by one after that. A slow script
for maintainers; it needs the package index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).parent.parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
# What each adds for a user: imports that must work.
EXTRAS = {
    "plots": "import matplotlib.figure",
    "datasets": "import sklearn; from tf_tickets.zoo import datasets; "
    "datasets.load('digits', batch_size=32)",
    "mnist1d": "import mnist1d",
    "litert": "import ai_edge_litert.interpreter",
    "tfmot": "import os; os.environ['TF_USE_LEGACY_KERAS'] = '1'; "
    "import tensorflow_model_optimization",
    "ray": "import ray",
}
JOB = """
import keras, numpy as np, tensorflow as tf, tf_tickets as tt
x = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
y = x @ np.ones((16, 4), "float32")
model = keras.Sequential([keras.Input((16,)),
                          keras.layers.Dense(256, activation="relu"),
                          keras.layers.Dense(4)])
model.compile("adam", "mse")
imp = tt.callbacks.IterativeMagnitudePruning(
    target_sparsity=0.9, rounds=2, epochs_per_round=2, directory="run")
model.fit(x, y, epochs=imp.epochs, callbacks=[imp], verbose=0)
model.fit(x, y, epochs=2, verbose=0)
assert tt.Ticket.from_model(model).sparsity == imp.ticket.sparsity
imp.ticket.save("ticket")
assert tt.Ticket.load("ticket").hamming_distance(imp.ticket) == 0
made = tt.export.saved_model(model, "served", format="packed")
served = tf.saved_model.load("served")
np.testing.assert_allclose(served.serve(x), model(x), atol=1e-5)
tt.export.verify(made)
print(keras.__version__, tf.__version__, np.__version__)
"""

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("python", PYTHONS, PYTHONS, "Of these, what is here.")
flags.DEFINE_multi_enum(
    "dependencies", ["newest", "oldest"], ["newest", "oldest"], "Of each."
)
flags.DEFINE_multi_enum(
    "extra", list(EXTRAS), list(EXTRAS), "After it, with the newest."
)


def main(argv: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        wheel = build(place / "dist")
        print(
            "| Python | dependencies | Keras, TensorFlow, NumPy | extras | s |"
        )
        print("|---|---|---|---|---:|")
        failed = [
            f"{python}, {which}"
            for python in FLAGS.python
            for which in FLAGS.dependencies
            if not tried(place / f"{python}-{which}", wheel, python, which)
        ]
    if failed:
        raise SystemExit(f"Failed: {'; '.join(failed)}")


def build(dist: Path) -> Path:
    """Builds both distributions from what git knows; the wheel."""
    source = dist.with_name("source")
    run("git", "clone", "--quiet", str(ROOT), str(source))
    run(sys.executable, "-m", "build", "--outdir", str(dist), str(source))
    run(sys.executable, "-m", "twine", "check", "--strict",
        *map(str, dist.iterdir()))  # fmt: skip
    [wheel] = dist.glob("*.whl")
    return wheel


def tried(place: Path, wheel: Path, python: str, which: str) -> bool:
    """Whether one environment works; prints its row."""
    start = time.monotonic()
    cells = ["", ""]
    try:
        run("uv", "venv", "--quiet", f"--python={python}", str(place))
        if which == "newest":
            install(place, str(wheel))
        else:
            install(
                place, str(wheel), *needed(wheel), "--resolution=lowest-direct"
            )
        cells[0] = job(place, JOB).split("\n")[-1].replace(" ", ", ")
        worked = []
        for extra in FLAGS.extra if which == "newest" else []:
            try:
                install(place, f"tf_tickets[{extra}] @ {wheel.as_uri()}")
                job(place, EXTRAS[extra])
            except RuntimeError as error:
                worked.append(f"**not {extra}**")
                print(f"{extra}: {error}", file=sys.stderr)
            else:
                worked.append(extra)
        cells[1] = ", ".join(worked)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        cells[0] = "**" + str(error).strip().split("\n")[-1][:80] + "**"
    seconds = time.monotonic() - start
    print(f"| {python} | {which} | {cells[0]} | {cells[1]} | {seconds:.0f} |")
    sys.stdout.flush()
    shutil.rmtree(place, ignore_errors=True)
    return "**" not in "".join(cells)


def needed(wheel: Path) -> list[str]:
    """What a wheel depends on whatever the extra, as requirements."""
    with zipfile.ZipFile(wheel) as files:
        [name] = [n for n in files.namelist() if n.endswith("/METADATA")]
        text = files.read(name).decode()
    found = re.findall(r"^Requires-Dist: ([^;\n]+)$", text, re.MULTILINE)
    return [one.strip() for one in found]


def install(place: Path, *what: str) -> None:
    run("uv", "pip", "install", "--quiet", f"--python={place}", *what)


def job(place: Path, script: str) -> str:
    """What a script prints in an environment, in an empty folder."""
    work = place / "work"
    work.mkdir(exist_ok=True)
    return run(str(place / "bin/python"), "-c", script, cwd=work).strip()


def run(*command: str, cwd: Path | None = None) -> str:
    """The output of a command that must end well."""
    if command[0] == "uv":
        command = (sys.executable, "-m", *command)
    done = subprocess.run(
        command,
        cwd=cwd,
        text=True,
        capture_output=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if done.returncode:
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr + done.stdout)
        raise RuntimeError(f"{' '.join(command)[:200]}\n{said[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    app.run(main)
