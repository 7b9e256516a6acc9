"""Experiments are directories: idempotent, resumable, and survive kills."""

import contextlib
import csv
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tf_tickets.callbacks.directory import HeldElsewhereError, hold
from tf_tickets.pruning import SCOPES, smart_ratio
from tf_tickets.zoo import datasets, experiments, models, recipes
from tf_tickets.zoo.experiments import (
    METHODS,
    Choices,
    Experiment,
    Named,
    Task,
    Trial,
    runner,
)

QUICK = {"density": 0.1, "epochs": 1}


def one(method="magnitude", seed=0, **options):
    return Experiment(method=method, seed=seed, **{**QUICK, **options})


def whole(found, unit):
    """Everything a result must say, and the ticket beside it."""
    assert found["digest"] == unit.digest
    assert 0 <= found["test_accuracy"] <= 1 and np.isfinite(found["test_loss"])
    assert found["density"] == pytest.approx(unit.density, abs=1e-5)
    return True


@pytest.mark.parametrize(
    "options, digest",
    [
        ({"method": "imp", "density": 0.1, "seed": 0}, "a35c9243"),
        (
            {"method": "dense", "density": 1, "seed": 3, "epochs": 2},
            "f67a752d",
        ),
    ],
)
def test_identities_are_the_same_in_every_release(options, digest):
    """A change here makes people's finished runs strangers."""
    unit = Experiment(**options)
    assert unit.digest.startswith(digest)
    assert unit.name.endswith(digest)
    same = {**options, "rounds": None, "model": "digits_cnn"}
    assert Experiment(**same).digest == unit.digest
    assert Experiment(**{**options, "seed": 9}).digest != unit.digest


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "magic"}, "method='magic'"),
        ({"density": 0}, "density=0"),
        ({"density": float("nan")}, "density=nan"),
        ({"method": "dense"}, "density 1"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": None}, "seed=None"),
        ({"epochs": 0}, "epochs=0"),
        ({"rounds": 1.5}, "rounds=1.5"),
        ({"model": "resnet20"}, "model='resnet20'"),
        ({"model": "resnet"}, "`model` must be.*model='resnet'"),
        ({"dataset": "mnist"}, "`dataset` must be.*dataset='mnist'"),
        ({"recipe": "coarse"}, "`recipe` must be.*recipe='coarse'"),
        ({"criterion": "snap"}, "`criterion` must be.*criterion='snap'"),
        ({"scope": "erc"}, "`scope` must be.*'global'.*scope='erc'"),
        ({"scope": {"head": 0.5}}, "`scope` must be"),
        ({"method": "snip", "criterion": "grasp"}, "asks for no criterion"),
        ({"method": "gem_miner", "criterion": "snip"}, "no criterion"),
        ({"method": "edge_popup_all", "scope": "erk"}, "asks for no scope"),
        ({"method": "smart_ratio_v3", "scope": "erk"}, "asks for no scope"),
        ({"method": "gradual", "tweaks": "labels"}, "asks for no tweaks"),
        ({"tweaks": ["labels", "luck"]}, "`tweaks` must be.*tweaks='luck'"),
        ({"options": {"warmth": 1}}, "of 'imp' are rewind, .*'warmth'"),
        ({"method": "random", "options": {"warmth": 1}}, "'warmth'"),
        ({"options": {"rewind": [{1}]}}, r"`options` must hold.*\{1\}"),
    ],
)
def test_bad_experiments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**{"method": "imp", "density": 0.1, "seed": 0, **options})
    with pytest.raises(ValueError, match="one twice"):
        experiments.run([one(), one()], "nowhere")
    with pytest.raises(ValueError, match="workers=-1"):
        experiments.run([], "nowhere", workers=-1)


@pytest.mark.parametrize("method", ["imp", "gradual", "snip"])
def test_a_run_ends_with_its_result_and_is_not_repeated(
    method, tmp_path, monkeypatch
):
    # What the zoo has is used by name once; the others are small.
    own = {} if method == "gradual" else {**NET, "density": 59 / 592}
    rounds = 2 if method == "imp" else None
    unit = one(method, rounds=rounds, **own)
    assert unit.result(tmp_path) is None
    found = unit.run(tmp_path)
    assert whole(found, unit) and unit.result(tmp_path) == found
    ticket = tt.Ticket.load(tmp_path / "ticket.safetensors")
    assert ticket.kept == (59 if own else 6128)
    monkeypatch.setattr(experiments.experiment, "Trial", None)  # no training
    assert unit.run(tmp_path) == found
    with pytest.raises(ValueError, match="another experiment.*seed"):
        one(method, seed=1, **own).run(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json.*not the result"):
        unit.run(tmp_path)


def test_a_run_is_a_function_of_its_identity(tmp_path):
    first, second = (one("random", **NET).run(tmp_path / n) for n in "ab")
    differ = {k for k in first if first[k] != second[k]}
    assert differ <= {"seconds"}


def kill_one(directory, killed):
    """Kill -9 whoever is first found to wait for it."""
    while not killed:
        time.sleep(0.01)
        for path in directory.glob(f"*/{BEGUN}"):
            if (text := path.read_text()).endswith("\n"):
                os.kill(int(text), signal.SIGKILL)
                killed.append((path.parent, int(text)))


@contextlib.contextmanager
def killing(directory):
    """Inside, one process is killed at its work."""
    killed = []
    killer = threading.Thread(
        target=kill_one, args=(directory, killed), daemon=True
    )
    killer.start()
    yield
    killer.join(10)
    [(unit, pid)] = killed
    assert pid != os.getpid()
    # The one that took over is another process.
    assert int((unit / "lock").read_text()) != pid
    assert not list(directory.glob("*/.result.json.*"))


def test_a_killed_ray_worker_is_started_again(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    # Tests may not use the network that Ray would ask how it is used.
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    try:
        units = [
            Experiment(density=share, seed=0, **{**OWN, "method": killed_once})
            for share in (0.1, 0.2)
        ]
        (tmp_path / units[0].name).mkdir()
        (tmp_path / units[0].name / BEGUN).write_text("")  # is not killed
        with killing(tmp_path):
            found = experiments.run_on_ray(units, tmp_path)
        assert follows(tmp_path / units[0].name, found[0])
        assert found[1]["twice"] == pytest.approx(2 * found[1]["density"])
        assert experiments.results(tmp_path) == found
        # Ray hands over what no module holds.
        monkeypatch.setitem(METHODS, "mine", lambda trial: twice(trial))
        unit = Experiment(density=0.1, seed=0, **{**OWN, "method": "mine"})
        [found] = experiments.run_on_ray([unit], tmp_path)
        assert follows(tmp_path / unit.name, found)
    finally:
        ray.shutdown()


def test_what_is_done_is_not_handed_to_ray(tmp_path, monkeypatch):
    unit, left = (
        Experiment(density=0.1, seed=seed, **{**OWN, "method": counted})
        for seed in range(2)
    )
    found = unit.run(tmp_path / unit.name)
    monkeypatch.setitem(sys.modules, "ray", None)  # cannot be imported
    assert experiments.run_on_ray([unit], tmp_path, verbose=0) == [found]
    assert (tmp_path / "results.csv").exists()
    with pytest.raises(ImportError, match="Ray is not installed"):
        experiments.run_on_ray([unit, left], tmp_path, verbose=0)
    with pytest.raises(ValueError, match="per_process=0"):
        experiments.run_on_ray([], tmp_path, per_process=0)


def test_who_meets_an_experiment_in_other_hands_waits_for_it(tmp_path):
    """As a worker does whose caller was killed and called again."""
    unit = Experiment(density=0.1, seed=0, **{**OWN, "method": counted})
    held, waiting = threading.Event(), threading.Event()

    def other():
        lock = hold(tmp_path)
        held.set()
        waiting.wait()
        time.sleep(0.1)
        lock.release()

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    with pytest.raises(ValueError, match="Another process or thread"):
        unit.run(tmp_path)
    waiting.set()
    assert runner._patiently(unit, tmp_path, None)["count"] == 1
    thread.join()
    # A directory that the method itself could not have is no reason to wait.
    strange = Experiment(density=0.1, seed=0, **{**OWN, "method": refused})
    with pytest.raises(ValueError, match="elsewhere"):
        runner._patiently(strange, tmp_path / "b", None)


def test_the_table_takes_a_twentieth_of_the_time(tmp_path, monkeypatch):
    now, written = [0.0], []

    def write(found, path):
        written.append(len(found))
        now[0] += 1.0

    monkeypatch.setattr(runner, "write_csv", write)
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    progress = runner._Progress([(one(), tmp_path)], tmp_path, 0)
    for _ in range(1000):
        now[0] += 0.1
        progress.done({})
    progress.end()
    assert 3 <= len(written) <= 7  # in 100 seconds


def test_the_example_runs(tmp_path, example):
    said = example(
        "experiments", "--smoke", "--workers=0", f"--output_dir={tmp_path}"
    )
    assert "2 runs" in said and "magnitude" in said
    for path in tmp_path.glob("*/result.json"):
        assert json.loads(path.read_text())["epochs"] == 1


# What people have in modules of their own.


def tiny(*, input_shape, classes):
    layers = [
        keras.layers.Flatten(name="flat"),
        keras.layers.Dense(8, activation="relu", name="hidden"),
        keras.layers.Dense(classes, name="head"),
    ]
    return keras.Sequential([keras.Input(input_shape), *layers], name="tiny")


def few(settings):
    digits = datasets.load(
        "digits", batch_size=settings.batch_size, seed=settings.seed
    )
    return dataclasses.replace(
        digits, train=digits.train.take(4), train_size=4 * digits.batch_size
    )


def quick(model, dataset):
    return recipes.PruningRecipe(
        model="tiny",
        dataset="few",
        epochs=1,
        batch_size=32,
        initial_learning_rate=0.01,
        prune_fraction=0.5,
        rewind_step=0,
    )


def last_first(model, masks, *, data, seed):
    """Keeps the last weights of a tensor."""
    return {
        path: np.arange(mask.size, dtype="float32").reshape(mask.shape)
        for path, mask in masks.items()
    }


def half_of_the_head(shapes, density):
    """Half of the head, or more while the budget is larger than the rest."""
    sizes = {path: int(np.prod(shape)) for path, shape in shapes.items()}
    [head] = [path for path in sizes if "head" in path]
    budget, rest = density * sum(sizes.values()), sum(sizes.values())
    rest -= sizes[head]
    other = min(1.0, (budget - 0.5 * sizes[head]) / rest)
    own = (budget - other * rest) / sizes[head]
    return {path: own if path == head else other for path in sizes}


def counted(trial):
    return {"count": len(list(trial.directory.glob("lock")))}


def refused(trial):
    raise HeldElsewhereError(Path("elsewhere"))


def twice(trial):
    """A method: `"prune"`, and a number of NumPy's beside it."""
    found = METHODS["prune"](trial)
    return {**found, "twice": np.float32(2 * found["density"])}


BEGUN = "begun"


def killed_once(trial):
    """`twice`, but the first process that begins it waits for its end."""
    begun = trial.directory / BEGUN
    if not begun.exists():
        begun.write_text(f"{os.getpid()}\n")
        time.sleep(100)
    return twice(trial)


OWN = {
    "method": twice,
    "model": tiny,
    "dataset": few,
    "recipe": quick,
    "criterion": last_first,
    "scope": half_of_the_head,
}


def follows(directory, found):
    """The run used each of the functions."""
    ticket = tt.Ticket.load(directory / "ticket.safetensors")
    densities = {path.split("/")[-2]: path for path in ticket.masks}
    assert set(densities) == {"hidden", "head"}
    head = ticket.masks[densities["head"]].ravel()
    assert (head == (np.arange(80) >= 40)).all()
    assert ticket.kept == 59  # a tenth of 64 * 8 + 8 * 10
    assert found["twice"] == pytest.approx(2 * 59 / 592)
    assert found["epochs"] == 1
    return True


def test_a_function_works_wherever_a_name_does(tmp_path):
    unit = Experiment(density=0.1, seed=0, **OWN)
    named = {
        option: f"{__name__}:{function.__name__}"
        for option, function in OWN.items()
    }
    assert unit.identity == {"density": 0.1, "seed": 0, **named}
    assert unit.name == f"twice-tiny-few-d0.1-s0-{unit.digest[:8]}"
    assert unit == Experiment(density=0.1, seed=0, **OWN)
    [found] = experiments.run([unit], tmp_path)
    assert found["experiment"] == unit.identity
    assert follows(tmp_path / unit.name, found)
    assert experiments.run([unit], tmp_path) == [found]
    for option in OWN:
        others = {**OWN, option: Named("mine", OWN[option])}
        assert Experiment(density=0.1, seed=0, **others).digest != unit.digest


@pytest.mark.parametrize("method", ["imp", "gradual"])
def test_methods_prune_by_the_criterion_and_in_the_scope(method, tmp_path):
    others = {k: v for k, v in OWN.items() if k != "method"}
    unit = Experiment(method=method, density=0.1, seed=0, rounds=1, **others)
    found = unit.run(tmp_path)
    assert follows(tmp_path, {**found, "twice": 2 * found["density"]})


def test_what_the_zoo_has_goes_by_its_name():
    given = {
        "method": METHODS["imp"],
        "model": models.digits_cnn,
        "dataset": datasets.DATASETS["digits"],
        "recipe": recipes.iterative_pruning,
        "criterion": None,
        "scope": "global",
    }
    unit = Experiment(density=0.1, seed=0, **given)
    assert unit.digest.startswith("a35c9243")
    assert Experiment(
        density=0.1,
        seed=np.int64(0),
        method=Named("imp", METHODS["imp"]),
        model="digits_cnn",
    ).digest == (unit.digest)
    with pytest.raises(ValueError, match="'resnet20' is taken"):
        one(model=Named("resnet20", tiny), recipe=quick)


class Builder:
    def make(self, *, input_shape, classes):
        return tiny(input_shape=input_shape, classes=classes)

    def __call__(self, model, dataset):
        return quick(model, dataset)


def no_recipe(model, dataset):
    return {}


@pytest.mark.parametrize(
    "option, function",
    [
        ("model", lambda **options: tiny(**options)),
        ("model", functools.partial(tiny, classes=3)),
        ("model", Builder().make),
        ("recipe", Builder()),
        ("scope", smart_ratio(linear="head")),
    ],
)
def test_what_has_no_name_of_its_own_needs_one(option, function):
    others = {"model": tiny, "recipe": quick, option: function}
    with pytest.raises(ValueError, match=rf"`{option}` has none.*`Named`"):
        one("random", **others)
    others[option] = Named("my own: one", function)
    unit = one("random", **others)
    assert unit.identity[option] == "my own: one"
    assert "/" not in unit.name and ":" not in unit.name


@pytest.mark.parametrize("option", ["model", "method"])
def test_a_lambda_cannot_go_to_another_process(option, tmp_path, monkeypatch):
    if option == "model":
        others = {"model": Named("my", lambda **o: tiny(**o)), "recipe": quick}
    else:
        monkeypatch.setitem(METHODS, "mine", lambda trial: {})
        others = {"method": "mine"}
    with pytest.raises(
        ValueError, match=f"`{option}` cannot be handed.*module.*<lambda>"
    ):
        experiments.run([one(**others), one(seed=1)], tmp_path, workers=1)
    assert not list(tmp_path.iterdir())  # nothing was begun
    with pytest.raises(ValueError, match="`name` must be a text"):
        Named("", tiny)
    with pytest.raises(ValueError, match="`function` must be something"):
        Named("mine", "tiny")


def test_own_networks_need_a_recipe(tmp_path):
    with pytest.raises(ValueError, match="your own model: give `recipe`"):
        one(model=tiny)
    with pytest.raises(ValueError, match="must return a `Recipe`.*returns {}"):
        one(model=tiny, recipe=no_recipe)
    spending = recipes.SpendingRecipe(
        **{
            name: value
            for name, value in vars(quick("", "")).items()
            if name not in ("prune_fraction", "rewind_step")
        },
        rewind_epoch=0,
    )
    how = Named("how", lambda model, dataset: spending)
    unit = one("imp", model=tiny, dataset=few, recipe=how)
    with pytest.raises(ValueError, match="needs a `PruningRecipe`"):
        unit.run(tmp_path)


def test_a_method_must_return_what_json_can_say(tmp_path):
    for value in ({1, 2}, np.ones(2)):
        unit = one(Named("odd", lambda trial, value=value: {"found": value}))
        with pytest.raises(TypeError, match="A method must return.*Received"):
            unit.run(tmp_path)
        assert unit.result(tmp_path) is None


SCRIPT = """
from pathlib import Path

from tests.zoo import test_experiments as t


def network(**options):
    return t.tiny(**options)


if __name__ == "__main__":
    with Path(__file__).with_suffix(".ran").open("a") as file:
        file.write("once")
"""


def test_other_processes_have_what_was_added_and_go_on_after_a_kill(
    tmp_path, monkeypatch
):
    """Functions of a module, of the script that runs, and in our tables."""
    script, runs = tmp_path / "own_script.py", tmp_path / "runs"
    script.write_text(SCRIPT)
    main = types.ModuleType("__main__")
    main.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(compile(SCRIPT, script, "exec"), vars(main))
    monkeypatch.setitem(METHODS, "mine", killed_once)
    monkeypatch.setitem(SCOPES, "half", half_of_the_head)
    others = {**OWN, "method": "mine", "scope": "half"}
    good = Experiment(density=0.1, seed=0, **{**others, "model": main.network})
    # Of this one, nothing but a module has to be there.
    others["model"] = Named("partial", functools.partial(tiny))
    bad = Experiment(density=0.1, seed=1, **{**others, "method": refused})
    assert good.identity["method"] == "mine"
    assert good.identity["model"] == "own_script:network"
    assert bad.name.startswith("refused-partial-few-")
    with (
        killing(runs),
        pytest.raises(
            RuntimeError, match=r"(?s)1 of 2 .*-s1-.*Another process.*elsewhere"
        ) as raised,
    ):
        experiments.run([bad, good], runs, workers=1)
    assert "Traceback" not in str(raised.value)  # failures are told last
    found = good.result(runs / good.name)
    assert found["experiment"] == good.identity
    assert follows(runs / good.name, found)
    assert experiments.results(runs) == [found]
    assert script.with_suffix(".ran").read_text() == "once"
    monkeypatch.setattr(subprocess, "run", None)  # no process is started
    assert experiments.run([good], runs, workers=2) == [found]


def test_a_script_without_a_guard_does_not_start_itself(monkeypatch):
    monkeypatch.setattr(runner, "_in_child", True)
    with pytest.raises(RuntimeError, match="__name__ == '__main__'"):
        experiments.run([one()], "nowhere", workers=1)


def test_functions_of_a_session_stay_in_it(tmp_path, monkeypatch):
    """As in a notebook: what runs has no file."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.delattr(main, "__file__", raising=False)
    monkeypatch.setattr(tiny, "__module__", "__main__")
    monkeypatch.setattr(main, "tiny", tiny, raising=False)
    unit = one("random", model=tiny, recipe=quick)
    assert unit.identity["model"] == "__main__:tiny"
    with pytest.raises(ValueError, match="defined in a session"):
        experiments.run([unit], tmp_path, workers=1)


def test_options_and_tweaks_are_of_the_identity():
    unit = one("gem_miner", options={"learning_rate": 2.0, "every": 3})
    same = one(
        "gem_miner", options={"every": np.int64(3), "learning_rate": 2.0}
    )
    assert unit == same and hash(unit) == hash(same)
    assert unit.identity["options"] == {"every": 3, "learning_rate": 2.0}
    assert unit.digest != one("gem_miner").digest
    tweaked = one("imp", tweaks="labels")
    assert tweaked.identity["tweaks"] == ["labels"]
    assert tweaked == one("imp", tweaks=["labels"])
    assert json.loads(json.dumps(unit.identity)) == unit.identity


# Pairing: what a method finds depends on no other method.

SEEN = []


def watched(settings):
    """`few`, whose batches are noted as they are taken."""
    data = few(settings)

    def note(labels):
        SEEN.append(labels.copy())
        return labels

    def noted(x, y):
        [seen] = [tf.numpy_function(note, [y], y.dtype)]
        seen.set_shape(y.shape)
        return x, seen

    return dataclasses.replace(data, train=data.train.map(noted))


def watching(trial, *, method, **options):
    """A method, with what its last training began with and saw."""
    fit, starts = Trial.fit, []

    def noting(self, *args, **kwargs):
        starts.append([w.numpy() for w in self.model.trainable_weights])
        SEEN.clear()
        return fit(self, *args, **kwargs)

    Trial.fit = noting
    try:
        found = METHODS[method](trial, **options)
    finally:
        Trial.fit = fit
    return {
        **found,
        "labels": np.concatenate(SEEN).tolist(),
        "start": [w.tolist() for w in starts[-1]],
    }


PAIRED = {
    "snip": {"per_class": 4},
    "imp": {},
    "gem_miner": {"score_penalty": 1e-4, "epochs": 4, "every": 1},
}


def paired(method):
    return Experiment(
        method=Named(
            f"watched {method}", functools.partial(watching, method=method)
        ),
        density=0.3,
        seed=0,
        rounds=1,
        options=PAIRED[method],
        model=tiny,
        dataset=watched,
        recipe=quick,
    )


def lasting(found):
    return {k: v for k, v in found.items() if k != "seconds"}


def test_a_result_does_not_depend_on_other_methods(tmp_path):
    """In their order or presence; all start alike and see the same."""
    names = ["snip", "imp", "gem_miner"]
    forward = [paired(name) for name in names]
    first = experiments.run(forward, tmp_path / "a", verbose=0)
    # The other way round, and not all of them.
    second = experiments.run(forward[:0:-1], tmp_path / "b", verbose=0)
    assert list(map(lasting, second)) == list(map(lasting, first[:0:-1]))
    for found in first:
        assert len(found["labels"]) == 4 * 32
        assert found["labels"] == first[0]["labels"]
    # SNIP and IMP rewind to the same weights, under masks of their own.
    for a, b in zip(first[0]["start"], first[1]["start"], strict=True):
        a, b = np.array(a), np.array(b)
        both = (a != 0) & (b != 0)
        assert (a[both] == b[both]).all()
        assert both.any() or a.ndim == 1  # biases start at zero


def test_a_task_begins_anew():
    recipe = recipes.Recipe(
        model="tiny",
        dataset="few",
        epochs=1,
        batch_size=32,
        initial_learning_rate=0.01,
    )
    task = Task.prepare(recipe, model=tiny, dataset=few, seed=3)

    def labels():
        return [y.tolist() for _, y in task.data.train.as_numpy_iterator()]

    first, second = labels(), labels()
    task.restart()
    assert labels() == first != second
    assert [y.tolist() for _, y in task.batches(2)] == first[:2]
    assert labels() == first
    x, y = task.sample(3)
    assert y.tolist() == np.repeat(range(10), 3).tolist() and len(x) == 30
    other = task.on(keras.models.clone_model(task.model))
    assert other.model.compiled and other.model is not task.model
    with pytest.raises(ValueError, match="Received: load=None"):
        Task(task.data, task.model, recipe).restart()


# What methods do.

NET = {"model": tiny, "dataset": few, "recipe": quick}


def frozen_net(*, input_shape, classes):
    """A "pretrained" network: the same weights whatever the seed."""
    model = tiny(input_shape=input_shape, classes=classes)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.weights])
    return model


@pytest.mark.parametrize("method", ["gradual", "imp"])
def test_criteria_get_their_data(method, tmp_path):
    unit = one(
        method, criterion="snip", rounds=1, options={"per_class": 3}, **NET
    )
    assert whole_of_tiny(unit.run(tmp_path), 59)


def whole_of_tiny(found, kept):
    assert found["density"] == pytest.approx(kept / 592)
    assert 0 <= found["test_accuracy"] <= 1 and 0 <= found["val_accuracy"] <= 1
    return True


def test_mining_in_pretrained_weights(tmp_path):
    unit = Experiment(
        method="gem_miner",
        density=0.3,
        seed=0,
        **{**NET, "model": frozen_net},
        options={
            "weights": "keep",
            "score_penalty": 1e-4,
            "epochs": 4,
            "every": 1,
            "mask": "frozen",
        },
    )
    assert whole_of_tiny(unit.run(tmp_path), 178)
    ticket = tt.Ticket.load(tmp_path / "ticket.safetensors")
    pretrained = frozen_net(input_shape=(8, 8, 1), classes=10)
    for (path, mask), layer in zip(
        ticket.masks.items(), ("hidden", "head"), strict=True
    ):
        own = pretrained.get_layer(layer).kernel.numpy()
        assert mask.any()
        np.testing.assert_array_equal(ticket.weights[path], own)
    with pytest.raises(ValueError, match="give the option `score_penalty`"):
        one("edge_popup_gradual", **NET).run(tmp_path / "other")


@pytest.mark.parametrize(
    "method, options",
    [
        ("learning_rate_rewinding", {}),
        ("imp_short_warm", {}),
        ("smart_ratio_v6", {"batches": 1, "steps": 2, "candidates": 2}),
        (
            "edge_popup_gradual",
            {"score_penalty": 1e-4, "epochs": 4, "every": 1},
        ),
    ],
)
def test_methods_end_at_the_density(method, options, tmp_path):
    unit = Experiment(
        method=method,
        density=0.3,
        seed=0,
        rounds=1,
        tweaks=["labels"] if method.startswith("imp") else (),
        options=options,
        **NET,
    )
    found = unit.run(tmp_path)
    assert whole_of_tiny(found, 178)
    assert found["search_epochs"] >= 1
    assert tt.Ticket.load(tmp_path / "ticket.safetensors").kept == 178


def test_the_dense_network_takes_tweaks_too(tmp_path):
    """As a ticket that keeps everything: what a gain is compared with."""
    plain, tweaked = (
        Experiment(method="dense", density=1.0, seed=0, tweaks=tweaks, **NET)
        for tweaks in ((), ("labels",))
    )
    found = [one.run(tmp_path / one.name) for one in (plain, tweaked)]
    assert [row["density"] for row in found] == [1.0, 1.0]
    assert found[0]["test_loss"] != found[1]["test_loss"]
    [path] = (tmp_path / tweaked.name).glob("ticket.*")
    assert tt.Ticket.load(path).density == 1
    assert not [*(tmp_path / plain.name).glob("ticket.*")]


def test_early_bird_trains_fewer_channels(tmp_path, monkeypatch):
    """With the penalty on the scales kept, as in the published scripts."""
    penalized, schemes = [], []
    train = Trial.train

    def watched(self, epochs, *callbacks):
        schemes.extend(getattr(one, "scheme", "none") for one in callbacks)
        [gamma, *_] = tt.structured.draw.scale_variables(self.model)
        strength = getattr(gamma.regularizer, "strength", None)
        penalized.append(strength)
        return train(self, epochs, *callbacks)

    monkeypatch.setattr(Trial, "train", watched)
    unit = Experiment(
        method="early_bird",
        density=0.5,
        seed=0,
        epochs=3,
        options={
            "epsilon": 1.0,
            "window": 1,
            "keep_slimming": True,
            "bits": 8,
            "scheme": "published",
        },
    )
    found = unit.run(tmp_path)
    assert found["found"] and 1 <= found["search_epochs"] < 3
    assert found["density"] == pytest.approx(0.5, abs=0.02)
    assert 0 < found["macs_left"] < 1 and 0 < found["parameters_left"] < 1
    # The search puts on its own when it begins.
    assert penalized == [None, 1e-4]
    assert schemes == ["published", "none"]


class Prepared(Exception):
    pass


def test_each_part_trains_by_its_own_recipe(tmp_path, monkeypatch):
    """IMP does not draw with the finetuning's rate, nor with ResNet-20's."""
    prepared = []

    def prepare(recipe, **options):
        prepared.append((recipe, options["model"]))
        if len(prepared) > 1:
            raise Prepared
        data = dataclasses.replace(few(datasets.Settings(batch_size=32)))
        return Task(data, None, recipe, lambda size: data, 0)

    monkeypatch.setattr(Task, "prepare", prepare)
    for method, rate, how in [
        ("imp", 0.1, ("sgd", "multistep")),
        ("gem_miner", 0.01, ("sgd", "cosine")),
        ("early_bird", 0.1, ("sgd", "multistep")),
    ]:
        prepared.clear()
        unit = Experiment(
            method=method,
            density=0.014,
            seed=0,
            model="vgg16",
            dataset="cifar10",
            recipe="finetune",
        )
        last = unit.how_to_train()
        assert last == recipes.finetune("vgg16", "cifar10", 0.014)
        with pytest.raises(Prepared):
            METHODS[method](Trial(unit._choices(), tmp_path))
        assert [p[0].initial_learning_rate for p in prepared] == [0.05, rate]
        drawn, network = prepared[1]
        assert network == drawn.model == "vgg16"
        assert (drawn.algorithm, drawn.schedule) == how
        assert (drawn.affine, drawn.bias) == (last.affine, last.bias)


# What is shown.


def guess(trial, *, number):
    return {"test_accuracy": number + trial.choices.seed / 10}


def guesses():
    found = [
        Experiment(
            method=guess,
            density=density,
            seed=seed,
            options={"number": number},
            **NET,
        )
        for number in (0.2, 0.6)
        for density in (0.5, 0.1)
        for seed in (0, 1, 2)
    ]
    return found


def test_results_are_shown_and_written(tmp_path, capsys):
    units = guesses()
    experiments.run(units[:6], tmp_path, verbose=0)
    assert capsys.readouterr().out == ""
    found = experiments.run(units, tmp_path)
    assert "12/12" in capsys.readouterr().out
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[0]["method"].endswith(":guess")
    assert {row["asked_density"] for row in rows} == {"0.5", "0.1"}
    assert {json.loads(row["options"])["number"] for row in rows} == {0.2, 0.6}
    summary = experiments.summarize(found)
    assert len(summary) == 4
    for row in summary:
        number = 0.2 if "number=0.2" in row["method"] else 0.6
        values = number + np.arange(3) / 10
        assert row["mean"] == pytest.approx(values.mean())
        assert row["std"] == pytest.approx(values.std(ddof=1))
        assert list(row["values"].values()) == pytest.approx(values.tolist())
    image = (tmp_path / "accuracy.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 10_000
    beside = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert beside == {"results.csv", "accuracy.png"}
    with pytest.raises(ValueError, match="Received: metric='luck'"):
        experiments.plot(found, tmp_path / "luck.png", "luck")
    with pytest.raises(ValueError, match="verbose=3"):
        experiments.run(units, tmp_path, verbose=3)


def test_choices_stand_for_names(tmp_path):
    unit = one("imp", criterion=last_first, **NET)
    choices = unit._choices()
    assert isinstance(choices, Choices)
    assert choices.criterion is last_first and choices.network is tiny
    assert choices.recipe == quick("tiny", "few")
