r"""Do the training steps compile for TPU and GPU, and what do masks cost there?

    python -m benchmarks.compile_for --target=tpu
    python -m benchmarks.compile_for --target=tpu4
    python -m benchmarks.compile_for --target=h100

No TPU or GPU is needed: their compilers come as public packages, into an
environment of their own (build/compilers, pinned, made at the first run). Every
step that the library makes is lowered by TensorFlow and compiled there, beside
the dense step: operations, bytes that are read and written, memory. For four
TPUs the batch is split and everything else is on all: numbers are those of one
device, and what they exchange is counted (`exchanges`, instructions). A compile
shows that a step has no operation that the device lacks and no shape that is
not known; it is no run, and no time.

What is compiled is kept in build/compilers/rows.jsonl, and a script that was
broken off goes on behind it. `--again` begins anew, as it must after a change
of the library.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import tensorflow as tf
from absl import app

import tf_tickets as tt
from benchmarks import networks, script
from tf_tickets.zoo import models

HERE = Path(__file__).parent / "compilers"
BUILD = Path(__file__).parent.parent / "build" / "compilers"
# Beside `requirements.txt`, where they are wanted: half a gigabyte.
GPU = ("jax-cuda12-pjrt==0.7.2", "jax-cuda12-plugin==0.7.2")


def resnet20() -> keras.Model:
    return networks.build("resnet20", smoke=FLAGS.smoke)


def mobilenet_v2() -> keras.Model:
    return models.get("mobilenet_v2", classes=networks.CLASSES)


def transformer() -> keras.Model:
    """Tokens to the next one's class: six layers, as wide as 256."""
    layers, width = (1, 16) if FLAGS.smoke else (6, 256)
    tokens = keras.Input((64,), dtype="int32")
    x = keras.layers.Embedding(1000, width)(tokens)
    for _ in range(layers):
        normed = keras.layers.LayerNormalization()(x)
        attention = keras.layers.MultiHeadAttention(4, width // 4)
        x = x + attention(normed, normed, use_causal_mask=True)
        normed = keras.layers.LayerNormalization()(x)
        inner = keras.layers.Dense(4 * width, activation="gelu")(normed)
        x = x + keras.layers.Dense(width)(inner)
    x = keras.layers.LayerNormalization()(x)
    logits = keras.layers.Dense(networks.CLASSES, dtype="float32")(x[:, -1])
    return keras.Model(tokens, logits)


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "resnet20": resnet20,
    "mobilenet_v2": mobilenet_v2,
    "transformer": transformer,
}


@contextlib.contextmanager
def begun(
    model: keras.Model, callback: keras.callbacks.Callback
) -> Iterator[None]:
    """Inside, the model is as it is while `fit` has this callback."""
    callback.set_params({"epochs": 100, "steps": 100, "verbose": 0})
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    try:
        yield
    finally:
        callback.on_train_end()


def dense(model: keras.Model) -> Iterator[keras.Model]:
    yield model


def masked(model: keras.Model) -> Iterator[keras.Model]:
    tt.prune(model, 0.9, scope="erk").apply(model)
    yield model


def masked_before(model: keras.Model) -> Iterator[keras.Model]:
    """Masks that came before the model was compiled: four bytes a weight."""
    fresh = keras.Model(model.inputs, model.outputs)  # nobody compiled it
    tt.prune(fresh, 0.9, scope="erk").apply(fresh)
    yield compiled(fresh)


def rigl(model: keras.Model) -> Iterator[keras.Model]:
    sparse = tt.callbacks.DynamicSparseTraining(sparsity=0.9)
    with begun(model, sparse):
        yield model


def mining(model: keras.Model) -> Iterator[keras.Model]:
    miner = compiled(tt.supermask(model, score_penalty=1e-4))
    with begun(miner, tt.callbacks.IterativeFreezing(0.9, every=1)):
        yield miner


def mining_steered(model: keras.Model) -> Iterator[keras.Model]:
    miner = compiled(tt.supermask(model))
    with begun(miner, tt.callbacks.IterativeFreezing(0.9, every=1)):
        yield miner


def edge_popup(model: keras.Model) -> Iterator[keras.Model]:
    yield compiled(tt.supermask(model, mask="top_k", sparsity=0.9))


def edge_popup_global(model: keras.Model) -> Iterator[keras.Model]:
    yield compiled(
        tt.supermask(model, mask="top_k", sparsity=0.9, scope="global")
    )


def random_masks(model: keras.Model) -> Iterator[keras.Model]:
    yield compiled(tt.supermask(model, mask="random", score_penalty=1e-4))


def low_precision(model: keras.Model) -> Iterator[keras.Model]:
    with tt.callbacks.low_precision(model):
        yield model


def early_bird(model: keras.Model) -> Iterator[keras.Model]:
    with begun(model, tt.callbacks.EarlyBird([0.5])):
        yield model


def retraining(model: keras.Model) -> Iterator[keras.Model]:
    ticket = tt.prune(model, 0.9, scope="erk")
    spent = tt.retraining.spend(ticket, model, tweaks=["architecture"])
    yield compiled(spent)


def distilled(model: keras.Model) -> Iterator[keras.Model]:
    teacher = keras.models.clone_model(model)
    tt.prune(model, 0.9, scope="erk").apply(model)
    yield compiled(tt.retraining.distiller(model, teacher))


STEPS: dict[str, Callable[[keras.Model], Iterator[keras.Model]]] = {
    "dense": dense,
    "masked": masked,
    "masked before it was compiled": masked_before,
    "dynamic sparse training": rigl,
    "Gem-Miner": mining,
    "Gem-Miner, λ steered": mining_steered,
    "Edge-Popup": edge_popup,
    "Edge-Popup, global": edge_popup_global,
    "random masks": random_masks,
    "low precision": low_precision,
    "Early-Bird": early_bird,
    "retraining, AT": retraining,
    "distillation": distilled,
}

# Skips go around convolutions.
NO_STEPS = {("transformer", "retraining, AT")}

FLAGS = script.define(
    __name__,
    target=(("tpu", "tpu4", "h100"), "Which compilers; may be given twice."),
    network=(tuple(NETWORKS), "What to train; may be given twice."),
    policy=(("float32", "mixed_bfloat16"), "Of Keras; may be given twice."),
    step=(tuple(STEPS), "Which steps, always beside the dense one."),
    batch_size=(64, "Of every network."),
    again=(False, "Compile what is there already, too."),
)


def compiled(model: keras.Model) -> keras.Model:
    return networks.compile_for_training(keras, model, jit_compile=True)


def lowered(model: keras.Model, image: Any) -> bytes:
    """The training step of a compiled model as `fit` runs it on a device.

    Args:
        model: What trains.
        image: The symbolic input of its network.
    """
    x = tf.zeros((batch_size(), *image.shape[1:]), image.dtype)
    y = tf.zeros((batch_size(),), tf.int64)
    model.optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=True, autograph=False)
    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        return model.train_step((x, y))

    program: bytes = step.experimental_get_compiler_ir(x, y)(
        stage="hlo_serialized"
    )
    return program


def made(network: str, policy: str, step: str) -> bytes:
    """The program of one step."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy(policy)
    warnings.simplefilter("ignore")  # that no training follows
    try:
        model = compiled(NETWORKS[network]())
        [image] = model.inputs
        with contextlib.contextmanager(STEPS[step])(model) as ready:
            return lowered(ready, image)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def environment(gpu: bool) -> str:
    """The Python of the compilers; installed if it is missing."""
    python = BUILD / "env" / "bin" / "python"
    wanted = [("requirements", ["-r", str(HERE / "requirements.txt")])]
    if gpu:
        wanted.append(("gpu", ["--no-deps", *GPU]))
    for name, packages in wanted:
        if (BUILD / name).exists():
            continue
        if not python.exists():
            command = [sys.executable, "-m", "venv", str(BUILD / "env")]
            subprocess.run(command, check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(pip, check=True)
        (BUILD / name).touch()
    return str(python)


class Compiler:
    """The compiler of a target, in a process of its own."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._process: subprocess.Popen[str] | None = None

    def compile(self, program: Path) -> dict[str, Any]:
        """What it says of a program; its end is an error, too."""
        if self._process is None:
            command = [
                environment(self.target == "h100"),
                str(HERE / "compile.py"),
                self.target,
            ]
            self._process = subprocess.Popen(
                command,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        process = self._process
        said = ""
        with contextlib.suppress(BrokenPipeError):
            cast(IO[str], process.stdin).write(f"{program}\n")
            cast(IO[str], process.stdin).flush()
            said = cast(IO[str], process.stdout).readline()
        if not said:
            self._process = None
            return {"error": f"the compiler ended with {process.wait()}"}
        row: dict[str, Any] = json.loads(said)
        return row

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


Row = dict[str, Any]
Key = tuple[Any, ...]


def key(row: Row) -> Key:
    """What makes a row the one that is wanted."""
    return tuple(
        row[name] for name in ("target", "network", "policy", "step", "batch")
    )


def wanted() -> Iterator[Row]:
    """The rows that the flags ask for, in the order of the table.

    Targets come last: a program is lowered once for all of them.
    """
    steps = list(dict.fromkeys(["dense", *FLAGS.step]))
    for network in FLAGS.network:
        for policy in FLAGS.policy:
            for step in steps:
                if (network, step) in NO_STEPS:
                    continue
                for target in FLAGS.target:
                    yield {
                        "target": target,
                        "network": network,
                        "policy": policy,
                        "step": step,
                        "batch": batch_size(),
                    }


def batch_size() -> int:
    return 4 if FLAGS.smoke else FLAGS.batch_size


def kept(file: Path) -> dict[Key, Row]:
    """What earlier runs have found."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {key(row): row for row in map(json.loads, lines)}


def compile_all(folder: Path, compilers: Mapping[str, Compiler]) -> list[Row]:
    """The rows that are wanted; what is not there yet is made."""
    file = folder / "rows.jsonl"
    known = {} if FLAGS.again else kept(file)
    program, lowered_for = folder / "program.hlo", None
    refused = ""
    found = []
    for row in wanted():
        if key(row) in known:
            found.append(known[key(row)])
            continue
        which = row["network"], row["policy"], row["step"]
        if lowered_for != which:
            lowered_for, refused = which, ""
            try:
                program.write_bytes(made(*which))
            except Exception as error:  # noqa: BLE001 - told in the table
                refused = f"{type(error).__name__}: {error}"[:300]
        said = (
            {"error": refused}
            if refused
            else compilers[row["target"]].compile(program)
        )
        found.append({**row, **said})
        with file.open("a") as rows:
            rows.write(json.dumps(found[-1]) + "\n")
        print(json.dumps(found[-1]), file=sys.stderr)
    return found


def table(rows: Sequence[Row]) -> str:
    """A row for each step; what it costs over the dense one in per cent."""
    lines = [
        "| target | network | precision | batch | step | compiles "
        "| operations | traffic | arguments | temporaries | exchanges |",
        "|---|---|---|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    parts = ("target", "network", "policy", "batch")
    base: dict[Key, Row] = {}
    # Targets change slowest in the table, and fastest in the work.
    order = list(dict.fromkeys(row["target"] for row in rows))
    for row in sorted(rows, key=lambda row: order.index(row["target"])):
        part = tuple(row[name] for name in parts)
        if row["step"] == "dense":
            base[part] = row
        cells = [_cell(row, base.get(part, {}), n) for n in _NUMBERS]
        verdict = f"no: {row['error']}" if "error" in row else "yes"
        lines.append(
            f"| {' | '.join(map(str, part))} | {row['step']} | {verdict} | "
            f"{' | '.join(cells)} | {row.get('exchanges') or ''} |"
        )
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """For each target, what a step reads and writes over the dense one.

    As the compiler counts it; where that is something else, what kernels move
    in whatever memory; and what goes from and to the main one.
    """
    tables = []
    for target in dict.fromkeys(row["target"] for row in rows):
        own = {
            (row["network"], row["policy"], row["step"]): row
            for row in rows
            if row["target"] == target
        }
        parts = list(
            dict.fromkeys((network, policy) for network, policy, _ in own)
        )
        steps = list(dict.fromkeys(step for *_, step in own))
        heads = [
            f"{network}, {policy.removeprefix('mixed_')}"
            for network, policy in parts
        ]
        for count in ("traffic", "kernels", "memory"):
            if count != "traffic" and all(
                row.get(count) in (None, row["traffic"])
                for row in own.values()
                if "error" not in row
            ):
                continue
            lines = [
                f"| {target}, {count} | {' | '.join(heads)} |",
                f"|---|{'---:|' * len(heads)}",
            ]
            for step in steps:
                cells = []
                for part in parts:
                    row = own.get((*part, step))
                    dense = own.get((*part, "dense"), {})
                    if row is not None and "error" in row:
                        cells.append("does not compile")
                    else:
                        cells.append(_cell(row or {}, dense, count))
                lines.append(f"| {step} | {' | '.join(cells)} |")
            tables.append("\n".join(lines))
    return "\n\n".join(tables)


_NUMBERS = ("flops", "traffic", "arguments", "temporaries")


def _cell(row: Row, dense: Row, name: str) -> str:
    value, before = row.get(name), dense.get(name)
    if value is None:
        return ""
    if row["step"] == "dense" or not before:
        return f"{value / 1e9:.3f} G"
    return f"{100 * (value / before - 1):+.2f} %"


def main(argv: Sequence[str]) -> None:
    del argv
    BUILD.mkdir(parents=True, exist_ok=True)
    compilers = {target: Compiler(target) for target in FLAGS.target}
    found = compile_all(BUILD, compilers)
    for compiler in compilers.values():
        compiler.close()
    print(table(found))
    print()
    print(summary(found))
    print()
    for name, value in script.describe_machine().items():
        print(f"{name}: {value}")
    if FLAGS.output is not None:
        Path(FLAGS.output).write_text(json.dumps(found, indent=2) + "\n")
    if any("error" in row for row in found):
        raise SystemExit("A step does not compile.")


if __name__ == "__main__":
    app.run(main)
