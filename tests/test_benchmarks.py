"""The benchmarks run and report whole rows; no timing is asserted here."""

import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from benchmarks import (
    blocks,
    compile_for,
    demo,
    dynamic_sparse,
    heads,
    masked_step,
    readme,
    retraces,
    scale,
    score_penalty,
    script,
    selection,
    supermask_step,
    timing,
    web,
)
from benchmarks.compilers import program as programs

MARKS = script.MARKS
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path, capsys):
    """Run a script's `main` with flags: its printed rows and its JSON."""

    def run(script, *arguments):
        output = tmp_path / "rows.json"
        script.FLAGS.unparse_flags()
        script.FLAGS([script.__name__, "--smoke", *arguments])
        script.FLAGS.output = str(output)
        script.main([])
        return table_of(capsys.readouterr().out), json.loads(output.read_text())

    return run


def test_help_of_a_script_names_its_flags(monkeypatch):
    own = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", own)
    script.define("__main__", rounds=(3, "Timed runs."))
    help_ = own.module_help(sys.argv[0])
    assert "--rounds: Timed runs." in help_
    assert "--[no]smoke" in help_


def test_a_missing_package_is_named_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"keras_hub: .*tf_tickets\[hub\]"):
        script.need("keras_hub", "hub")


def table_of(text):
    """``{(case, what): ratio}`` of the Markdown table in ``text``."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    header, _, *body = rows
    assert header[:2] == ["case", "what"] and header[4] == "ratio"
    return {(row[0], row[1]): float(row[4]) for row in body}


def sound(table, written):
    """Every ratio is a number above 0, on paper and in the file."""
    assert len(written["rows"]) == len(table)
    for row in written["rows"]:
        assert row["seconds"] > 0 and row["rounds"] > 0
        assert math.isfinite(row["ratio"]) and row["ratio"] > 0
        assert math.isfinite(row["cpu_ratio"]) and row["cpu_ratio"] > 0
        assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
        assert row["quartiles"][0] <= row["ratio"] <= row["quartiles"][1]
        assert table[row["case"], row["name"]] == pytest.approx(
            row["ratio"], abs=6e-4
        )
    assert set(written["machine"]) >= {"cpu_cores", "tensorflow", "keras"}
    return True


def test_ratios_are_taken_within_a_round_and_bracketed():
    """By hand: the machine is ten times slower in the last three rounds."""
    dense = np.array([1.0, 1.0, 10.0, 10.0, 10.0])
    masked = np.array([2.0, 3.0, 20.0, 20.0, 10.0])
    times = {
        "dense": timing.Times(dense, np.full(5, 4.0)),
        "masked": timing.Times(masked, np.array([4.0, 4.0, 5.0, 6.0, 6.0])),
    }
    row = timing.compare(times, "masked", "dense", case="c")
    # Ratios 2, 3, 2, 2, 1; those of the medians and the means are 1 and
    # 55 / 32.
    assert (row.ratio, row.quartiles) == (2.0, (2.0, 2.0))
    assert row.interval == (1.0, 3.0)
    assert (row.seconds, row.rounds) == (10.0, 5)
    assert row.cpu_ratio == 5 / 4


def test_masked_step(run):
    table, written = run(
        masked_step, "--network=mlp", "--jit_compile=true", "--notfmot"
    )
    case = "mlp, XLA"
    assert set(table) == {
        (case, "masked, tf_tickets"),
        (case, "masked, tf_tickets, masks redrawn"),
        (case, "masked, RigL between updates"),
        (case, "masked, RigL between updates, over masked"),
    }
    assert sound(table, written)
    assert written["notes"]["mask bytes per weight, masked, tf_tickets"] == 1


def test_supermask_step(run):
    table, written = run(
        supermask_step,
        "--network=mlp",
        "--scope=global",
        "--jit_compile=false",  # `test_masked_step` has it true
    )
    assert {what for _, what in table} == {
        "threshold",
        "threshold, λ steered",
        "top-k, global",
        "top-k by sorting, global",
    }
    assert sound(table, written)


def test_score_penalties_are_chosen_on_validation_and_a_run_is_made_once(
    tmp_path, monkeypatch, capsys
):
    made = []

    def measure(run):
        made.append(run)
        if run.penalty == "0.001":  # is lost here at once, and later on test
            raise KeyboardInterrupt
        found = {"after_frozen": 0.5, "kept_effective": 7, "kept_frozen": 9}
        # The best fixed one, and something better that must not be chosen.
        if (run.penalty, run.rate) == ("0.0003", 4.0):
            found["after_frozen"] = 0.8
        if run.penalty == "auto" or run.split == "test":
            found["after_frozen"] = 0.9
        return {"before_effective": 0.1, "before_frozen": 0.1,
                "after_effective": 0.2, **found}  # fmt: skip

    monkeypatch.setattr(score_penalty, "measure", measure)
    score_penalty.FLAGS.unparse_flags()
    score_penalty.FLAGS(
        ["score_penalty", "--seeds=2", f"--rows={tmp_path / 'rows.csv'}",
         "--stage=search", "--stage=test"]
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        score_penalty.main([])
    lost = made[-1]
    monkeypatch.setattr(
        score_penalty, "PENALTIES", [1e-4, 3e-4]
    )  # what there is by now
    score_penalty.main([])
    assert made.count(lost) == 1 and len(set(made)) == len(made)
    tests = [run for run in made if run.split == "test"]
    assert {run.penalty for run in tests} == {
        "auto", "0.0003", "0.00045", "0.0002"
    }  # fmt: skip
    assert {run.rate for run in tests if run.penalty != "auto"} == {4.0}
    assert {run.seed for run in tests} == {10, 11}
    printed = capsys.readouterr().out
    assert "| test | 0.0144 | 40 | 4 | 0.0003 | signed_constant | 2 | 7 |" in (
        printed
    )
    before = len(made)
    score_penalty.main([])
    assert len(made) == before


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_model_optimization") is None,
    reason="tfmot is not installed",
)
def test_masked_step_beside_tfmot(tmp_path):
    """In a process of its own: importing tfmot switches tf.keras over."""
    output = tmp_path / "rows.json"
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.masked_step",
            "--smoke",
            "--network=mlp",
            "--jit_compile=false",
            f"--output={output}",
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    table = table_of(ran.stdout)
    assert {what for _, what in table} == {
        side + suffix
        for side in ("masked, tf_tickets", "masked, tfmot")
        for suffix in ("", ", masks redrawn")
    } | {
        f"masked, RigL between updates{suffix}"
        for suffix in ("", ", over masked")
    }
    assert sound(table, json.loads(output.read_text()))


def test_selection(run):
    table, written = run(selection)
    assert {what for _, what in table} == {
        "keep_largest",
        "keep_largest, threshold among ties",
        "np.partition",
        "np.partition, threshold among ties",
        "np.sort",
        "select, from dense",
        "select, under masks",
        "whole draw, from dense",
        "whole draw, under masks",
        "tf.sort",
        "tf.math.top_k, of the kept",
        "tf.math.top_k, of all (as tfmot)",
    }
    assert sound(table, written)


def test_scale(capsys, tmp_path):
    output = tmp_path / "rows.json"
    scale.FLAGS.unparse_flags()
    scale.FLAGS([scale.__name__, "--smoke", f"--output={output}"])
    scale.main([])
    rows = json.loads(output.read_text())["rows"]
    assert [row["what"] for row in rows] == list(scale.MEASURES)
    assert all(row["seconds"] > 0 and row["cpu"] > 0 for row in rows)
    # Those that draw have drawn, exactly.
    kept = {row["what"]: row["kept"] for row in rows if row["kept"]}
    size = round(1e6 * rows[0]["weights"])
    assert kept == dict.fromkeys(
        ("prune", "prune, weights=False", "load", "imp", "imp, XLA"),
        round(0.1 * size),
    )
    table = capsys.readouterr().out
    assert all(f"| {what} |" in table for what in scale.MEASURES)


def test_retraces(run):
    table, written = run(retraces)
    assert set(table) == {
        (case, what)
        for case in ("one fit", "compiled each round")
        for what in ("first round", "later round")
    }
    assert sound(table, written)
    # Not a time: the promise that all rounds share the first one's traces.
    notes = written["notes"]
    first, *later = notes["traces in each round, one fit"]
    assert first > 0 and later == [0]
    assert all(notes["traces in each round, compiled each round"])


def paged(script, tmp_path, *arguments):
    """Run a script that replaces the tables of a page: the page."""
    page = tmp_path / "page.md"
    page.write_text("before\n{}\n{}\nafter\n".format(*MARKS))
    script.FLAGS.unparse_flags()
    script.FLAGS([script.__name__, "--smoke", *arguments])
    script.FLAGS.output = str(page)
    script.main([])
    return page.read_text()


def test_heads(run):
    table, written = run(heads, "--model=local", "--batches=2", "--length=8")
    sound(table, written)
    assert written["notes"]["local: largest difference"] < 1e-5
    assert written["notes"]["local: largest difference when loaded"] == 0
    assert written["notes"]["local: trains"]


def test_dynamic_sparse(tmp_path):
    page = paged(dynamic_sparse, tmp_path)
    for side in dynamic_sparse.sides():
        assert f"| {side} |" in page
    assert "One RigL update of 4,096 weights takes" in page


@pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_litert") is None,
    reason="ai-edge-litert is not installed",
)
def test_blocks(tmp_path):
    page = paged(blocks, tmp_path, "--sparsities=0.9")
    assert len(re.findall(r"\| 90%, blocks \(4, 1\), [\d,]+ B \|", page)) == 2


def test_flags_follow_their_defaults():
    values = script.define(
        "a test",
        word=(("a", "b"), "Some."),
        items=(["1"], "Any."),
        count=(5, "At least one."),
        several=(5, "At least two.", 2),
        share=(0.5, "Below one."),
        whether=(True, "Or not."),
        smoke=(False, "Other words for it."),
    )
    values(["a test"])
    assert (values.word, values.items, values.count) == (["a", "b"], ["1"], 5)
    assert (values.share, values.whether, values.output) == (0.5, True, None)
    values(["a test", "--word=b", "--items=3,4", "--nowhether", "--several=2"])
    assert (values.word, values.items, values.whether) == (
        ["b"],
        ["3", "4"],
        False,
    )
    for wrong in ("word=c", "count=0", "several=1", "share=1.0"):
        with pytest.raises(flags.IllegalFlagValueError):
            values(["a test", f"--{wrong}"])
    # Two scripts in one process have nothing to do with each other.
    other = script.define("another")
    other(["another", "--smoke"])
    assert other.smoke and not values.smoke and "word" not in other


def test_tables_of_a_page_are_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n{}\nold\n{}\nafter\n".format(*script.MARKS))
    for text in ("new", "newer"):
        script.replace_tables(page, text)
        assert page.read_text() == (
            f"before\n{script.MARKS[0]}\n\n{text}\n{script.MARKS[1]}\nafter\n"
        )


def test_what_is_measured_is_the_block_of_the_readme(tmp_path, monkeypatch):
    code = readme.block()
    assert code in readme.README.read_text()
    dense, drawn, rest = code.partition("imp = ")
    assert drawn and "model.compile" in dense and "saved_model" in rest
    # The last `fit` is as long as a round: that is what dense is trained for.
    [*_, epochs] = readme.re.findall(r" epochs=(\d+)", rest)
    assert f"epochs_per_round={epochs}" in rest
    monkeypatch.chdir(tmp_path)
    seeded = readme.run("import keras\nkeras.utils.set_random_seed(0)", 7)
    assert seeded["keras"].utils is not None
    drawn = np.random.random()
    np.random.seed(7)
    assert drawn == np.random.random()
    with pytest.raises(ValueError, match="one seed"):
        readme.run("pass", 7)


def test_the_demo_shows_mean_and_deviation_of_its_seeds(tmp_path, capsys):
    """Of runs that are there already; the example has its own test."""
    pytest.importorskip("matplotlib")
    rows = [
        "kind,density,val_accuracy,test_accuracy",
        "dense,1.0,0.9{0},",
        "ticket,0.5,0.8{0},",
        "re-initialized,0.5,0.5{0},0.4{0}",
        "random mask,0.5,0.3{0},0.2{0}",
        "dense,1.0,0.1,0.9{0}",
        "ticket,0.5,0.1,0.7{0}",
    ]
    for seed, digit in enumerate((1, 3)):
        directory = tmp_path / f"seed_{seed}"
        directory.mkdir()
        text = "\n".join(rows).format(digit)
        (directory / "results.csv").write_text(text)
    demo.FLAGS.unparse_flags()
    picture = tmp_path / "demo.png"
    demo.FLAGS(
        ["demo", "--seeds=2", f"--directory={tmp_path}", f"--picture={picture}"]
    )
    demo.main([])
    found = capsys.readouterr().out
    for line in (
        "| dense network | 92.0 ± 1.4 %",
        "| winning ticket | 72.0 ± 1.4 %",
        "| random mask, same densities | 22.0 ± 1.4 %",
    ):
        assert line in found
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_the_readme_says_what_the_demo_found():
    text = (ROOT / "README.md").read_text()
    assert "python -m benchmarks.demo --picture=docs/pictures/demo.png" in text
    assert (ROOT / "docs/pictures/demo.png").exists()


def test_steps_are_lowered_as_fit_has_them(tmp_path):
    """Whole programs of static shape, each other than the dense one."""
    programs = []

    class Recorder(compile_for.Compiler):
        def compile(self, program):
            programs.append(program.read_bytes())
            return {"traffic": len(programs)}

    def found(*more):
        compile_for.FLAGS.unparse_flags()
        compile_for.FLAGS(
            ["compile_for", "--smoke", "--network=transformer",
             "--policy=float32", "--target=tpu", *more]
        )  # fmt: skip
        rows = compile_for.compile_all(tmp_path, {"tpu": Recorder("tpu")})
        return [(row["step"], row["traffic"]) for row in rows]

    first = found("--step=masked")
    assert first == [("dense", 1), ("masked", 2)]
    # Only what is missing is compiled in the next run.
    second = found("--step=masked", "--step=Gem-Miner, λ steered")
    assert second == [*first, ("Gem-Miner, λ steered", 3)]
    assert len(set(programs)) == 3
    assert len(programs[0]) < min(map(len, programs[1:]))


def test_the_end_of_a_compiler_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_for, "environment", lambda gpu: "false")
    compiler = compile_for.Compiler("tpu")
    row = compiler.compile(tmp_path / "program.hlo")
    assert row == {"error": "the compiler ended with 1"}
    compiler.close()


def test_costs_are_told_over_the_dense_step():
    same = {"target": "tpu", "network": "n", "policy": "p", "batch": 4}
    numbers = {"flops": 2e9, "traffic": 4e9, "temporaries": 1e9}
    more = {
        "flops": 2.2e9,
        "traffic": 4.02e9,
        "temporaries": 5e8,
        "exchanges": 7,
        "memory": 2e9,
    }
    rows = [
        {**same, "step": "dense", **numbers, "memory": 1e9},
        {**same, "step": "masked", **more},
        {**same, "step": "broken", "error": "no kernel"},
    ]
    dense, masked, broken = compile_for.table(rows).splitlines()[2:]
    assert dense.endswith("| yes | 2.000 G | 4.000 G |  | 1.000 G |  |")
    assert masked.endswith("| yes | +10.00 % | +0.50 % |  | -50.00 % | 7 |")
    assert "| no: no kernel |" in broken
    assert compile_for.summary(rows).splitlines() == [
        "| tpu, traffic | n, p |",
        "|---|---:|",
        "| dense | 4.000 G |",
        "| masked | +0.50 % |",
        "| broken | does not compile |",
        "",
        "| tpu, memory | n, p |",
        "|---|---:|",
        "| dense | 1.000 G |",
        "| masked | +100.00 % |",
        "| broken | does not compile |",
    ]


def test_traffic_is_what_the_entry_reads_and_writes():
    program = """HloModule m
%fused (a: f32[4]) -> f32[4] {
  ROOT %x = f32[4]{0} add(%a, %a)
}

ENTRY %main (a: f32[2,2], m: pred[4]) -> (f32[2,2]) {
  %a = f32[2,2]{1,0} parameter(0), metadata={op_name="a"}
  %m = pred[4]{0} parameter(1)
  %b.1 = f32[4]{0} bitcast(%a)
  %conv = (bf16[4]{0}, u8[8]{0}) custom-call(%b.1, %m), window={size=3x3}
  %got = bf16[4]{0} get-tuple-element(%conv), index=0
  %c = f32[2,2]{1,0} fusion(%got, /*index=1*/%a), kind=kLoop, calls=%fused
  ROOT %t = (f32[2,2]{1,0}) tuple(%c)
}
"""
    call = (8 + 8) + (16 + 4)
    fusion = 16 + (8 + 16)
    assert programs.traffic(program) == call + fusion


def test_what_lies_on_the_chip_is_not_of_the_main_memory():
    """Worked by hand: a copy in beside a kernel, a slice out, two views."""
    program = """HloModule m

ENTRY %main (a: f32[4], b: f32[8,2]) -> f32[4] {
  %a = f32[4]{0:T(128)} parameter(0)
  %b = f32[8,2]{1,0} parameter(1)
  %c = (f32[4]{0:T(128)}, f32[4]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%a)
  %d = f32[4]{0:T(128)S(1)} copy-done(%c)
  %s = ((f32[8,2]{1,0}), f32[2,2]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%b)
  %t = f32[2,2]{1,0:S(1)} slice-done(%s)
  %v = f32[2,2]{1,0:S(1)} custom-call(%t), custom_call_target="ConcatBitcast"
  ROOT %k = f32[4]{0} fusion(%d, %v, %a), kind=kLoop, calls=%fused
}
"""
    kernel = 16 + (16 + 16 + 16)
    assert programs.traffic(program) == kernel
    copied = 16 + 16  # `a` and a quarter of `b`
    assert programs.memory(program) == copied + 16 + 16


def test_a_batch_is_split_and_all_else_is_everywhere():
    module = """module @m attributes {mhlo.num_partitions = 1 : i32} {
  func.func private @sum(%arg0: tensor<f32>) -> tensor<f32> {
  func.func @main(%arg0: tensor<8x2xf32> {jax.x = 1 : i32} loc("x"), \
%arg1: tensor<8xi64>, %arg2: tensor<2x3xf32>, %arg3: tensor<f32>) -> \
(tensor<f32>) {
    %0 = call @other(%arg0) : (tensor<8x2xf32>) -> tensor<f32>
"""
    found = programs.split(module, 4).splitlines()
    assert "{mhlo.num_partitions = 4 : i32}" in found[0]
    assert found[1] == module.splitlines()[1]
    parameters = found[2].partition("@main(")[2]
    assert parameters == (
        '%arg0: tensor<8x2xf32> {mhlo.sharding = "{devices=[4,1]<=[4]}"} '
        'loc("x"), '
        '%arg1: tensor<8xi64> {mhlo.sharding = "{devices=[4]<=[4]}"}, '
        '%arg2: tensor<2x3xf32> {mhlo.sharding = "{replicated}"}, '
        '%arg3: tensor<f32> {mhlo.sharding = "{replicated}"}) -> '
        "(tensor<f32>) {"
    )
    assert found[3] == module.splitlines()[3]


def test_what_is_begun_and_ended_is_one_exchange():
    program = """
  %a = f32[4]{0} all-reduce-start(%x), channel_id=1, to_apply=%sum
  %b = f32[4]{0} all-reduce-done(%a)
  %c = (f32[2]{0}, f32[1]{0}) all-reduce(%b, %b), channel_id=2
  %all-reduce.3 = f32[4]{0} fusion(%c), kind=kLoop
  %d = f32[8]{0} all-gather(%b), dimensions={0}
"""
    assert programs.exchanges(program) == 3


def test_without_node_the_web_benchmark_says_so(capsys, monkeypatch):
    monkeypatch.setattr(web.shutil, "which", lambda name: None)
    web.FLAGS.unparse_flags()
    web.FLAGS(["web"])
    web.main([])
    assert capsys.readouterr().out == (
        "Skipped: Node is not installed (20 or newer).\n"
    )
    monkeypatch.setattr(
        web.shutil, "which", lambda name: "node" if name == "node" else None
    )
    web.FLAGS.unparse_flags()
    web.FLAGS(["web", "--modules=/nowhere"])
    assert "npm is not there" in web.missing()


def test_every_variant_has_a_reason_to_be_there():
    """At least forty, no two alike, each of them convertible."""
    from benchmarks.web_variants import VARIANTS

    assert len(VARIANTS) >= 40
    assert len({*VARIANTS.values()}) == len(VARIANTS)
