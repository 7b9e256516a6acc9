"""Sparse files in WebAssembly: CPU time, bytes and outputs, in Node.

`networks`: MobileNet V1, V2 and V3 of `keras.applications`, of whose 1x1
weights a fraction is zero: dense in float32 and int8, sparse in float32 and
float16, as they are and rewritten by `tf_tickets.export.for_xnnpack`. Sides run
in turn, on one thread; the time is that of the CPU in the fastest round, since
whatever else a machine does only adds to it.

`variants`: what `tf_tickets.export.sparse_inference` says of the files of many
small networks, against what is computed (`benchmarks.web_variants`).

    python -m benchmarks.web                   # everything, some minutes
    python -m benchmarks.web --part=variants
    python -m benchmarks.web --files=model.tflite,other.tflite

It takes Node 20 and npm, which fetches ``@litertjs/core`` once; without them it
says so and does nothing.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import app, logging

import tf_tickets as tt
from benchmarks import script, timing
from benchmarks.web_variants import VARIANTS, pruned
from tf_tickets.export.choosing import difference
from tf_tickets.export.clusters import judge
from tf_tickets.export.litert import converted as litert_converted
from tf_tickets.export.source import DEFAULT, Source, sample

FLAGS = script.define(
    __name__,
    part=(
        ("networks", "variants"),
        "What to run; may be given more than once.",
    ),
    networks=(
        ["MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large"],
        "Of keras.applications.",
    ),
    zeros=(["0.7", "0.8", "0.9"], "Fractions of the 1x1 weights."),
    size=(224, "Of the image."),
    rounds=(20, "Timed rounds."),
    heads=(True, "Whether the dense heads are pruned, too."),
    files=([], "LiteRT files to time against the first, in place of all that."),
    modules=(None, "A node_modules that holds @litertjs/core."),
)

HERE = Path(__file__).parent / "web"


def missing() -> str:
    """Why nothing can be run here; empty if it can."""
    if shutil.which("node") is None:
        return "Node is not installed (20 or newer)"
    if not _installed().exists() and shutil.which("npm") is None:
        return "@litertjs/core is not installed, and npm is not there to do it"
    return ""


def modules() -> Path:
    """The directory with LiteRT.js, fetched by npm the first time."""
    if not _installed().exists():
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--silent"],
            cwd=HERE,
            check=True,
        )
    return _installed().parents[2]


def _installed() -> Path:
    given = getattr(FLAGS, "modules", None) if FLAGS.is_parsed() else None
    return Path(given or HERE / "node_modules") / "@litertjs/core/package.json"


@dataclasses.dataclass(frozen=True)
class Case:
    """Files to time side by side.

    Attributes:
        name: Of the case.
        files: ``{side: path}``.
        inputs: What they are run on.
    """

    name: str
    files: Mapping[str, Path]
    inputs: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Result:
    """What Node says of a case.

    Attributes:
        times: ``{side: times in seconds}``.
        outputs: ``{side: outputs}``, each flat.
        failed: ``{side: why}`` of the files that were not taken.
    """

    times: dict[str, timing.Times]
    outputs: dict[str, list[np.ndarray]]
    failed: dict[str, str]


def run(
    cases: list[Case], *, rounds: int, repeats: int = 1, warmup: int = 2
) -> list[Result]:
    """Run files in WebAssembly, those of a case in turn.

    Args:
        cases: What to run.
        rounds: How often each side is timed.
        repeats: How often it runs each time: CPU time has a resolution.
        warmup: Rounds before these.
    """
    with tempfile.TemporaryDirectory() as directory:
        job: dict[str, Any] = {
            "modules": str(modules().resolve()),
            "rounds": rounds,
            "warmup": warmup,
            "cases": [],
        }
        for number, case in enumerate(cases):
            where = Path(directory) / str(number)
            where.mkdir()
            inputs = []
            for i, x in enumerate(case.inputs):
                x.astype("float32").tofile(where / f"in{i}")
                inputs.append(
                    {"path": str(where / f"in{i}"), "shape": list(x.shape)}
                )
            job["cases"].append(
                {
                    "name": case.name,
                    "repeats": repeats,
                    "files": {k: str(p) for k, p in case.files.items()},
                    "inputs": inputs,
                    "outputs": {
                        side: str(where / f"out{i}")
                        for i, side in enumerate(case.files)
                    },
                }
            )
        done = subprocess.run(
            [
                "node",
                "--experimental-wasm-relaxed-simd",
                str(HERE / "run.mjs"),
            ],
            input=json.dumps(job),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"Node failed: {done.stderr[-2000:]}")
        return [
            _result(one, asked)
            for one, asked in zip(
                json.loads(done.stdout)["cases"], job["cases"], strict=True
            )
        ]


def _result(one: Mapping[str, Any], asked: Mapping[str, Any]) -> Result:
    outputs = {}
    for side, prefix in asked["outputs"].items():
        path = Path(prefix)
        found = sorted(path.parent.glob(f"{path.name}.*"))
        outputs[side] = [np.fromfile(file, "float32") for file in found]
    return Result(
        {
            side: timing.Times(
                np.array(one["wall"][side]) / 1e3,
                np.array(one["cpu"][side]) / 1e3,
            )
            for side in one["cpu"]
        },
        outputs,
        dict(one["failed"]),
    )


# --- networks -----------------------------------------------------------------


def application(name: str, size: int, zeros: float, heads: bool) -> Any:
    """A network of `keras.applications`, untrained, with zeros at random."""
    keras.utils.set_random_seed(0)
    make = getattr(keras.applications, name)
    model = make((size, size, 3), weights=None)
    return pruned(model, zeros, heads=heads)


def files_of(
    model: keras.Model,
    rewritten: keras.Model,
    turned: keras.Model,
    directory: Path,
    data: np.ndarray,
) -> dict[str, Path]:
    """Write a network in all the ways that are compared."""
    kinds: dict[str, tuple[keras.Model, dict[str, Any]]] = {
        "dense": (model, {"sparse": False}),
        "dense, int8": (model, {"sparse": False, "values": "int8"}),
        "sparse, as it is": (model, {}),
        "sparse, rewritten": (rewritten, {}),
        "sparse, rewritten, turned input": (turned, {}),
        "sparse, rewritten, fp16": (rewritten, {"values": "float16"}),
        "sparse, rewritten, int8": (rewritten, {"values": "int8"}),
    }
    found = {}
    for name, (one, options) in kinds.items():
        path = directory / f"{name.replace(', ', '_').replace(' ', '_')}.tflite"
        tt.export.write(one, path, format="litert", data=data, **options)
        found[name] = path
    return found


def networks(notes: dict[str, str]) -> list[timing.Row]:
    """The networks of `keras.applications` in all ways."""
    rows: list[timing.Row] = []
    size = 32 if FLAGS.smoke else FLAGS.size
    table = [
        "| network, zeros | file | CPU ms | dense / this | int8 / this | kB | "
        "differs by |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(table), flush=True)
    for zeros in sorted(map(float, FLAGS.zeros), reverse=True):
        for name in FLAGS.networks[: 1 if FLAGS.smoke else None]:
            rng = np.random.default_rng(1)
            data = rng.random((20, size, size, 3), "float32")
            # The same either way up, for the files that want it turned.
            data = (data + data[:, ::-1, ::-1]) / 2
            data *= 255 if "V3" in name else 1
            model = application(name, size, zeros, FLAGS.heads)
            rewritten = tt.export.for_xnnpack(model)
            turned = tt.export.for_xnnpack(model, turned_input=True)
            expected = np.asarray(model(data[:1]))
            case = f"{name}, {zeros:.0%}"
            with tempfile.TemporaryDirectory() as directory:
                files = files_of(
                    model, rewritten, turned, Path(directory), data
                )
                (result,) = run(
                    [Case(case, files, [data[:1]])],
                    rounds=FLAGS.rounds,
                    repeats=1 if FLAGS.smoke else 2,
                )
                for side, path in files.items():
                    if side in result.failed:
                        table.append(f"| {case} | {side} | fails | | | | |")
                        notes[f"{case}, {side}"] = result.failed[side]
                    else:
                        rows.append(
                            timing.compare(
                                result.times, side, "dense", case=case
                            )
                        )
                        off = expected.ravel() - result.outputs[side][0]
                        table.append(
                            _line(
                                case,
                                side,
                                result,
                                path.stat().st_size,
                                float(np.abs(off).max()),
                            )
                        )
                    print(table[-1], flush=True)
            keras.backend.clear_session()
    if FLAGS.output is not None:
        notes["table"] = "\n".join(table)
    return rows


def _line(case: str, side: str, result: Result, size: int, off: float) -> str:
    # Of the fastest round: whatever else a machine does only adds to it.
    cpu = {name: times.cpu.min() for name, times in result.times.items()}
    ratios = [
        f"{cpu[other] / cpu[side]:.2f}"
        if other in cpu and other != side
        else ""
        for other in ("dense", "dense, int8")
    ]
    return (
        f"| {case} | {side} | {1e3 * cpu[side]:.1f} | {ratios[0]} | "
        f"{ratios[1]} | {size / 1e3:,.0f} | {off:.0e} |"
    )


# --- variants -----------------------------------------------------------------


def variants(names: list[str], *, rounds: int) -> tuple[str, int]:
    """The table of verdicts and measurements, and how many disagree."""
    cases, verdicts, kept = [], {}, []
    with tempfile.TemporaryDirectory() as directory:
        for number, name in enumerate(names):
            model = VARIANTS[name]()
            files = {
                side: Path(directory) / f"{number}{side}"
                for side in ("dense", "sparse")
            }
            for side, path in files.items():
                path.write_bytes(converted(model, sparse=side == "sparse"))
            verdicts[name] = judge(files["sparse"].read_bytes())
            x = np.random.default_rng(0).normal(
                size=(1, *model.input_shape[1:])
            )
            cases.append(Case(name, files, [x]))
            kept.append(model)
        results = run(cases, rounds=rounds, repeats=10)
    lines = [
        "| network | the file says | measured | CPU, dense / sparse | differ |",
        "|---|---|---|---:|---:|",
    ]
    wrong = 0
    for name, result in zip(names, results, strict=True):
        verdict = verdicts[name]
        says = (
            "wrong"
            if verdict.wrong
            else "sparse"
            if verdict.sparse
            else "dense"
        )
        measured, off = _measured(result)
        agree = says == measured
        wrong += not agree
        ratio = ""
        if not result.failed:
            dense, sparse = (result.times[k].cpu for k in ("dense", "sparse"))
            ratio = f"{np.median(dense / sparse):.2f}"
        why = next((c.reason for c in verdict.clusters if c.reason), "")
        lines.append(
            f"| {name} | {says}{': ' + why if why else ''} | {measured}"
            f"{'' if agree else ' (DISAGREES)'} | {ratio} | {off:.0e} |"
        )
    return "\n".join(lines), wrong


def converted(model: keras.Model, *, sparse: bool) -> bytes:
    """What the converter makes, with nothing that `litert` does about it."""
    source = Source.of(model)
    inputs = sample(source.endpoints[DEFAULT][1], 1)
    return litert_converted(source, [inputs], sparse=sparse)


_LAST_BITS = 2e-5


def _measured(result: Result) -> tuple[str, float]:
    """How a sparse file was computed, by its outputs beside the dense one's.

    The same bits: by the same kernels. Sums in another order differ in the
    last bits. More is wrong, and nothing at all is a file that did not run.
    """
    if "sparse" in result.failed:
        return "wrong", float("inf")
    off = difference(result.outputs["dense"], result.outputs["sparse"])
    if off == 0:
        return "dense", off
    return ("sparse" if off < _LAST_BITS else "wrong"), off


# --- files --------------------------------------------------------------------


def given(paths: list[str]) -> list[timing.Row]:
    """Any files, against the first."""
    from ai_edge_litert.interpreter import Interpreter

    shapes = [
        one["shape"]
        for one in Interpreter(model_path=paths[0]).get_input_details()
    ]
    rng = np.random.default_rng(0)
    inputs = [rng.random(shape, "float32") for shape in shapes]
    files = {path: Path(path) for path in paths}
    (result,) = run([Case("files", files, inputs)], rounds=FLAGS.rounds)
    for path, why in result.failed.items():
        print(f"{path}: {why}")
    return [
        timing.compare(result.times, path, paths[0], case="files")
        for path in paths
        if path in result.times
    ]


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    why = missing()
    if why:
        print(f"Skipped: {why}.")
        return
    notes: dict[str, str] = {}
    rows: list[timing.Row] = []
    if FLAGS.files:
        rows = given(FLAGS.files)
    else:
        if "variants" in FLAGS.part:
            names = [*VARIANTS][: 3 if FLAGS.smoke else None]
            text, wrong = variants(names, rounds=2 if FLAGS.smoke else 5)
            print(text)
            print(f"\n{len(names)} networks, {wrong} disagree\n")
            notes["variants"] = f"{len(names)}, {wrong} disagree"
        if "networks" in FLAGS.part:
            if FLAGS.smoke:
                FLAGS.rounds = 2
                FLAGS.zeros = FLAGS.zeros[-1:]
            rows = networks(notes)
    script.report("web", rows, output=FLAGS.output, notes=notes)


if __name__ == "__main__":
    app.run(main)
