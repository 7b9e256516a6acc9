"""The recipes against the tables of the papers, retyped."""

import dataclasses
import re

import keras
import numpy as np
import pytest

from tf_tickets.zoo import datasets, models, recipes

NAMES = {
    "ResNet-18": "resnet18",
    "ResNet-20": "resnet20",
    "ResNet-50": "resnet50",
    "ResNet-50 (Pretrained)": "resnet50",
    "MobileNet-V2": "mobilenet_v2",
    "VGG-16": "vgg16",
    "WideResNet-28-2": "wide_resnet_28_2",
    "CIFAR-10": "cifar10",
    "TinyImageNet": "tiny_imagenet",
    "Caltech101": "caltech101",
    "Caltech-101": "caltech101",
}

# Tables 8 to 14: "sparsity", pruning period, optimizer, LR, lambda. Two rows of
# ResNet-18 have the published files' optimizer; the table prints SGD there.
GEM_MINER = """
ResNet-20 | CIFAR-10 | 50%    | 8  | SGD  | 0.05  | 1e-8
ResNet-20 | CIFAR-10 | 13.74% | 5  | SGD  | 0.1   | 1e-5
ResNet-20 | CIFAR-10 | 3.73%  | 5  | SGD  | 0.1   | 3e-5
ResNet-20 | CIFAR-10 | 1.44%  | 5  | SGD  | 0.1   | 1e-4
ResNet-20 | CIFAR-10 | 0.59%  | 5  | SGD  | 0.1   | 1e-4
MobileNet-V2 | CIFAR-10 | 50%   | 5 | SGD | 0.05 | 0
MobileNet-V2 | CIFAR-10 | 20%   | 5 | SGD | 0.1  | 3e-6
MobileNet-V2 | CIFAR-10 | 5%    | 5 | SGD | 0.1  | 7e-6
MobileNet-V2 | CIFAR-10 | 1.44% | 5 | SGD | 0.1  | 1e-4
VGG-16 | CIFAR-10 | 50%  | 5 | SGD | 0.01 | 0
VGG-16 | CIFAR-10 | 5%   | 5 | SGD | 0.01 | 1e-6
VGG-16 | CIFAR-10 | 2.5% | 5 | SGD | 0.01 | 1e-6
VGG-16 | CIFAR-10 | 1.4% | 5 | SGD | 0.01 | 1e-6
VGG-16 | CIFAR-10 | 0.5% | 5 | SGD | 0.01 | 1e-6
WideResNet-28-2 | CIFAR-10 | 50%   | 5  | SGD | 0.1 | 0
WideResNet-28-2 | CIFAR-10 | 20%   | 10 | SGD | 0.1 | 1e-5
WideResNet-28-2 | CIFAR-10 | 5%    | 10 | SGD | 0.1 | 1e-5
WideResNet-28-2 | CIFAR-10 | 1.44% | 10 | SGD | 0.1 | 1e-5
WideResNet-28-2 | CIFAR-10 | 0.5%  | 10 | SGD | 0.1 | 1e-5
ResNet-18 | TinyImageNet | 50%  | 10 | SGD  | 0.1   | 0
ResNet-18 | TinyImageNet | 5%   | 5  | ADAM | 0.001 | 8e-6
ResNet-18 | TinyImageNet | 1.4% | 5  | ADAM | 0.001 | 5e-6
ResNet-18 | TinyImageNet | 0.5% | 5  | SGD  | 0.001 | 1e-5
ResNet-50 | TinyImageNet | 50%  | 5  | ADAM | 0.01  | 0
ResNet-50 | TinyImageNet | 5%   | 5  | ADAM | 0.01  | 1e-6
ResNet-50 | TinyImageNet | 1.4% | 5  | ADAM | 0.01  | 1e-6
ResNet-50 | TinyImageNet | 0.5% | 5  | ADAM | 0.01  | 1e-6
ResNet-50 | Caltech101 | 50%  | 5 | ADAM | 0.01 | 0
ResNet-50 | Caltech101 | 5%   | 5 | ADAM | 0.01 | 1e-6
ResNet-50 | Caltech101 | 1.4% | 5 | ADAM | 0.01 | 1e-6
ResNet-50 | Caltech101 | 0.5% | 5 | ADAM | 0.01 | 1e-6
"""

# Table 15: "sparsity", epochs, batch size, LR, milestones.
FINETUNE = """
ResNet-20 | CIFAR-10 | 50% | 150 | 128 | 0.1 | [80, 120]
ResNet-20 | CIFAR-10 | others | 150 | 128 | 0.01 | [80, 120]
MobileNet-V2 | CIFAR-10 | all | 300 | 128 | 0.1 | [150, 250]
VGG-16 | CIFAR-10 | all | 200 | 128 | 0.05 | [100, 150]
WideResNet-28-2 | CIFAR-10 | 50% | 150 | 128 | 0.1 | [80, 120]
WideResNet-28-2 | CIFAR-10 | others | 150 | 128 | 0.01 | [80, 120]
ResNet-18 | TinyImageNet | all | 200 | 256 | 0.1 | [100, 150]
ResNet-50 | TinyImageNet | all | 150 | 256 | 0.1 | [80, 120]
ResNet-50 (Pretrained) | Caltech-101 | all | 50 | 16 | 0.0001 | [20, 40]
"""


def table(text):
    for line in text.strip().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        yield (NAMES[cells[0]], NAMES[cells[1]], *cells[2:])


def percent(cell):
    return float(cell.removesuffix("%")) / 100


@pytest.mark.parametrize("row", table(GEM_MINER), ids="-".join)
def test_gem_miner_row(row):
    model, dataset, sparsity, period, optimizer, rate, penalty = row
    recipe = recipes.gem_miner(model, dataset, percent(sparsity))
    assert (recipe.model, recipe.dataset) == (model, dataset)
    assert recipe.target_sparsity == pytest.approx(1 - percent(sparsity))
    assert recipe.every == int(period)
    assert recipe.algorithm == optimizer.lower()
    assert recipe.initial_learning_rate == float(rate)
    assert recipe.score_penalty == float(penalty)
    assert (recipe.schedule, recipe.weight_decay) == ("cosine", 0.0)
    # Caption of Table 15: as many epochs as finetuning.
    weights = recipes.finetune(model, dataset, percent(sparsity))
    assert recipe.epochs == weights.epochs
    assert recipe.batch_size == weights.batch_size
    assert recipe.affine == recipe.bias == (dataset == "caltech101")
    assert recipe.stem == stem_of(dataset)
    ablation = recipes.edge_popup(model, dataset, percent(sparsity))
    assert ablation == dataclasses.replace(
        recipe, score_decay=5e-4, batch_size=256
    )
    # A decay of 5e-4 is a gradient of 5e-4 p, a penalty of λ p² one of 2 λ p.
    assert ablation.penalty(regularized=False) == pytest.approx(5e-4 / 2)
    assert ablation.penalty() == pytest.approx(float(penalty) + 5e-4 / 2)
    assert recipe.penalty() == float(penalty)


def stem_of(dataset):
    return "imagenet" if dataset == "tiny_imagenet" else "auto"


def test_gem_miner_has_no_other_rows():
    found = {}
    for model, dataset, sparsity, *_ in table(GEM_MINER):
        found.setdefault((model, dataset), set()).add(percent(sparsity))
    for key, densities in found.items():
        with pytest.raises(ValueError, match="Received: density=0.33") as e:
            recipes.gem_miner(*key, 0.33)
        listed = re.findall(r"0\.\d+", str(e.value).split("Received")[0])
        assert sorted(map(float, listed)) == pytest.approx(sorted(densities))
    with pytest.raises(ValueError, match="resnet20 on cifar10") as e:
        recipes.gem_miner("resnet20", "cifar100", 0.5)
    assert str(e.value).count(" on ") == len(found) + len(OURS) == 9


# For real runs on two CPU cores, at any density.
OURS = [("digits_cnn", "digits"), ("resnet1d", "mnist1d")]


@pytest.mark.parametrize("names", OURS, ids="-".join)
def test_our_own_recipes_fit_together(names):
    mine = recipes.gem_miner(*names, 0.07)
    assert mine.target_sparsity == pytest.approx(0.93)
    assert (mine.schedule, mine.weight_decay) == ("cosine", 0.0)
    assert recipes.edge_popup(*names, 0.07) == mine
    weights = recipes.finetune(*names, 0.07)
    assert weights.density == 0.07
    assert weights.network_options() == mine.network_options()
    assert weights.network_options() == {"affine": False, "bias": False}
    assert recipes.iterative_pruning(*names).algorithm == weights.algorithm
    with pytest.raises(ValueError, match="Received: density=1.5"):
        recipes.gem_miner(*names, 1.5)


@pytest.mark.parametrize("row", table(FINETUNE), ids="-".join)
def test_finetune_row(row):
    model, dataset, sparsity, epochs, batch_size, rate, milestones = row
    densities = {
        "50%": [0.5],
        "others": [0.1374, 0.0144, 0.49, 0.9],
        "all": [0.5, 0.014],
    }[sparsity]
    for density in densities:
        recipe = recipes.finetune(model, dataset, density)
        assert (recipe.model, recipe.dataset) == (model, dataset)
        assert recipe.density == density
        assert recipe.epochs == int(epochs)
        assert recipe.batch_size == int(batch_size)
        assert recipe.initial_learning_rate == float(rate)
        assert list(recipe.milestones) == eval(milestones)
        # The published files have Adam for Caltech; the table has no column.
        algorithm = "adam" if dataset == "caltech101" else "sgd"
        assert (recipe.algorithm, recipe.momentum) == (algorithm, 0.9)
        assert (recipe.weight_decay, recipe.decay_factor) == (1e-4, 0.1)
        assert recipe.stem == stem_of(dataset)


def test_finetune_has_no_other_rows():
    with pytest.raises(ValueError, match="Received: model='conv2'") as e:
        recipes.finetune("conv2", "cifar10", 0.5)
    keys = {row[:2] for row in table(FINETUNE)}
    assert str(e.value).count(" on ") == len(keys) + len(OURS) == 9
    for density in (0.0, 1.0, 50):
        with pytest.raises(ValueError, match="Received: density="):
            recipes.finetune("vgg16", "cifar10", density)


def test_iterative_pruning():
    for model in ("resnet20", "vgg16", "mobilenet_v2", "wide_resnet_28_2"):
        recipe = recipes.iterative_pruning(model, "cifar10")
        assert dataclasses.asdict(recipe) == {
            "model": model,
            "dataset": "cifar10",
            "epochs": 160,
            "batch_size": 128,
            "algorithm": "sgd",
            "momentum": 0.9,
            "initial_learning_rate": 0.1,
            "schedule": "multistep",
            "milestones": (80, 120),
            "decay_factor": 0.1,
            "weight_decay": 1e-4,
            "affine": True,
            "bias": True,
            "stem": "auto",
            "prune_fraction": 0.2,
            "rewind_step": 1000,
        }
    digits = recipes.iterative_pruning("digits_cnn", "digits")
    assert (digits.algorithm, digits.initial_learning_rate) == ("adam", 2e-3)
    assert (digits.epochs, digits.prune_fraction) == (12, 0.3)
    with pytest.raises(ValueError, match="digits_cnn on digits.*Received"):
        recipes.iterative_pruning("resnet20", "digits")


def test_spending():
    for model in ("resnet18", "resnet34", "vgg16", "mobilenet_v1"):
        for dataset in ("cifar10", "cifar100", "tiny_imagenet"):
            recipe = recipes.spending(model, dataset)
            assert (recipe.model, recipe.dataset) == (model, dataset)
            assert (recipe.epochs, recipe.milestones) == (182, (90, 135))
            assert (recipe.batch_size, recipe.weight_decay) == (128, 2e-4)
            assert recipe.initial_learning_rate == 0.1
            assert (recipe.algorithm, recipe.momentum) == ("sgd", 0.9)
            assert recipe.rewind_epoch == 33
    with pytest.raises(ValueError, match="Received: model='resnet20'"):
        recipes.spending("resnet20", "cifar10")


def test_label_smoothing_spares_the_true_class():
    classes = 5
    recipe = recipes.spending("resnet18", "cifar10")
    loss = keras.losses.CategoricalCrossentropy(
        label_smoothing=recipe.keras_label_smoothing(classes)
    )
    guess = np.array([[0.1, 0.2, 0.3, 0.3, 0.1]])
    target = np.array([0.025, 0.9, 0.025, 0.025, 0.025])
    expected = -(target * np.log(guess)).sum()
    found = float(loss(np.eye(classes)[[1]], guess))
    assert found == pytest.approx(expected, rel=1e-5)
    for classes in (1, 2.5):
        with pytest.raises(ValueError, match="Received: classes="):
            recipe.keras_label_smoothing(classes)
    much = dataclasses.replace(recipe, label_smoothing=0.6)
    with pytest.raises(ValueError, match="less than the others"):
        much.keras_label_smoothing(2)


def test_early_bird():
    recipe = recipes.early_bird("vgg16", "cifar100")
    assert (recipe.epochs, recipe.milestones) == (160, (80, 120))
    assert (recipe.batch_size, recipe.weight_decay) == (256, 1e-4)
    assert (recipe.initial_learning_rate, recipe.momentum) == (0.1, 0.9)
    assert recipe.sparsities == (0.3, 0.5, 0.7)
    assert (recipe.slimming, recipe.initial_scale) == (1e-4, 0.5)
    assert (recipe.epsilon, recipe.window) == (0.1, 5)
    for dataset in ("cifar10", "cifar100"):
        assert recipes.early_bird("preresnet101", dataset) == (
            dataclasses.replace(recipe, model="preresnet101", dataset=dataset)
        )
    for model in ("resnet18", "resnet50"):
        large = recipes.early_bird(model, "imagenet")
        assert (large.epochs, large.milestones) == (90, (30, 60))
        assert large.initial_scale == 1.0  # in the networks for ImageNet
    # The other schedule: divided before the first epoch and after 100.
    other = recipe.adjusted(milestones=(0, 100)).learning_rate(10)
    rates = [float(other(step)) for step in (0, 5, 999, 1000, 1599)]
    assert rates == pytest.approx([0.01] * 3 + [0.001] * 2)
    with pytest.raises(ValueError, match="Received: .*'imagenet'"):
        recipes.early_bird("vgg16", "imagenet")


def test_early_bird_starts_the_scales():
    model = models.digits_cnn()
    recipe = recipes.early_bird("digits_cnn", "digits")
    dataclasses.replace(recipe, initial_scale=0.25).start(model)
    for name in ("conv1_bn", "conv2_bn"):
        np.testing.assert_array_equal(model.get_layer(name).gamma, 0.25)
    recipe.start(models.digits_cnn(affine=False))  # which has none


def test_adjusting_moves_the_milestones():
    recipe = recipes.spending("resnet18", "cifar10")
    short = recipe.adjusted(epochs=20, batch_size=None)
    assert (short.epochs, short.milestones) == (20, (10, 15))
    assert (short.rewind_epoch, short.batch_size) == (4, 128)
    one = recipe.adjusted(epochs=1)
    assert (one.milestones, one.rewind_epoch) == ((0,), 0)
    assert recipe.adjusted() == recipe
    with pytest.raises(ValueError, match="Received: epochs=0"):
        recipe.adjusted(epochs=0)
    late = make(epochs=10, schedule="multistep", milestones=(9,))
    assert late.adjusted(epochs=2).milestones == ()
    assert late.adjusted(epochs=2).schedule == "constant"


def test_a_recipe_says_what_network_it_wants():
    assert make().network_options() == {}
    gem = recipes.gem_miner("resnet18", "tiny_imagenet", 0.05)
    options = gem.network_options()
    assert options == {"affine": False, "bias": False, "stem": "imagenet"}
    model = models.resnet18(input_shape=(64, 64, 3), classes=200, **options)
    assert model.get_layer("stem_conv").kernel_size == (7, 7)


def test_names_are_those_of_the_zoo():
    found = [
        *(recipes.gem_miner(*r[:2], percent(r[2])) for r in table(GEM_MINER)),
        recipes.iterative_pruning("digits_cnn", "digits"),
        recipes.spending("mobilenet_v1", "cifar100"),
        recipes.early_bird("vgg16", "cifar10"),
    ]
    for recipe in found:
        assert recipe.model in models.names()
        assert recipe.dataset in datasets.names()


def make(**options):
    return recipes.Recipe(
        **{
            "model": "resnet20",
            "dataset": "cifar10",
            "epochs": 10,
            "batch_size": 128,
            "initial_learning_rate": 0.1,
            **options,
        }
    )


def test_rate_drops_at_the_first_step_of_a_milestone():
    recipe = make(schedule="multistep", milestones=(4, 7))
    rate = recipe.learning_rate(25)
    steps = np.arange(250)
    expected = 0.1 * 0.1 ** ((steps >= 100).astype(int) + (steps >= 175))
    found = [float(rate(step)) for step in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rate_along_a_cosine_and_constant():
    cosine = make(schedule="cosine").learning_rate(25)
    for step in (0, 1, 125, 249, 250):
        expected = 0.05 * (1 + np.cos(np.pi * step / 250))
        assert float(cosine(step)) == pytest.approx(expected, abs=1e-7)
    constant = make().learning_rate(25)
    assert [float(constant(s)) for s in (0, 9999)] == pytest.approx([0.1] * 2)


def test_optimizer_is_new_each_time_and_follows_the_schedule():
    recipe = make(schedule="multistep", milestones=(2,))
    first, second = recipe.optimizer(3), recipe.optimizer(3)
    assert first is not second
    assert isinstance(first, keras.optimizers.SGD)
    assert (first.momentum, first.weight_decay) == (0.9, None)
    variable = keras.Variable([0.0])
    first.build([variable])
    rates = []
    for _ in range(8):
        rates.append(float(first.learning_rate))
        first.apply([np.ones(1, "float32")])
    np.testing.assert_allclose(rates, [0.1] * 6 + [0.01] * 2, rtol=1e-5)
    adam = make(algorithm="adam", initial_learning_rate=2e-3).optimizer(3)
    assert isinstance(adam, keras.optimizers.Adam)
    assert float(adam.learning_rate) == pytest.approx(2e-3)


def test_weight_decay_trains_as_in_pytorch():
    """One step by hand: the decay is in the gradient, under the momentum."""
    recipe = make(weight_decay=0.01, momentum=0.9)
    model = models.digits_cnn(weight_decay=recipe.weight_decay)
    start = [w.numpy() for w in model.trainable_weights]
    optimizer = recipe.optimizer(1)
    model.compile(optimizer, lambda y, z: 0.0 * keras.ops.sum(z, axis=-1))
    images, labels = np.zeros((4, 8, 8, 1), "float32"), np.zeros(4)
    for _ in range(2):
        model.train_on_batch(images, labels)
    for weight, value in zip(model.trainable_weights, start, strict=True):
        once = value - 0.1 * 0.01 * value
        velocity = 0.9 * 0.01 * value + 0.01 * once
        np.testing.assert_allclose(
            weight, once - 0.1 * velocity, rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": 1.5},
        {"initial_learning_rate": 0.0},
        {"algorithm": "lion"},
        {"schedule": "linear"},
        {"momentum": 1.0},
        {"decay_factor": 0.0},
        {"weight_decay": -1e-4},
        {"milestones": (3,)},
        {"schedule": "multistep"},
        {"schedule": "multistep", "milestones": (7, 3)},
        {"schedule": "multistep", "milestones": (-1, 3)},
        {"stem": "tiny"},
        {"schedule": "multistep", "milestones": (3, 10)},
    ],
)
def test_values_are_checked(options):
    with pytest.raises(ValueError, match="Received: "):
        make(**options)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (("iterative_pruning", "resnet20"), {"prune_fraction": 1.0}),
        (("iterative_pruning", "resnet20"), {"rewind_step": -1}),
        (("spending", "resnet18"), {"label_smoothing": 1.0}),
        (("spending", "resnet18"), {"rewind_epoch": 182}),
        (("early_bird", "vgg16"), {"sparsities": ()}),
        (("early_bird", "vgg16"), {"sparsities": (0.3, 1.0)}),
        (("early_bird", "vgg16"), {"slimming": -1.0}),
        (("early_bird", "vgg16"), {"epsilon": 1.5}),
        (("early_bird", "vgg16"), {"initial_scale": -0.5}),
        (("early_bird", "vgg16"), {"window": 0}),
        (("gem_miner", "vgg16", 0.05), {"every": 0}),
        (("gem_miner", "vgg16", 0.05), {"score_penalty": -1.0}),
        (("gem_miner", "vgg16", 0.05), {"target_sparsity": 5.0}),
        (("finetune", "vgg16", 0.05), {"density": 5.0}),
    ],
)
def test_values_of_each_kind_are_checked(recipe, options):
    name, model, *density = recipe
    good = getattr(recipes, name)(model, "cifar10", *density)
    ((key, value),) = options.items()
    if value == (0.3, 1.0):
        value = 1.0  # the one that is wrong
    with pytest.raises(
        ValueError, match=re.escape(f"Received: {key}={value!r}")
    ):
        dataclasses.replace(good, **options)


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_steps_are_checked(steps):
    with pytest.raises(ValueError, match="Received: steps_per_epoch="):
        make().learning_rate(steps)
    with pytest.raises(ValueError, match="Received: steps_per_epoch="):
        make().optimizer(steps)


def test_recipes_are_frozen():
    recipe = recipes.spending("vgg16", "cifar10")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 1


@pytest.mark.parametrize(
    "recipe, own",
    [
        (
            recipes.iterative_pruning("resnet20", "cifar10"),
            {"epochs_per_round": 160, "prune_fraction": 0.2}
            | {"rewind_step": 1000, "rounds": 3, "seed": 7},
        ),
        (
            recipes.early_bird("vgg16", "cifar10"),
            {"sparsities": (0.3, 0.5, 0.7), "window": 5, "epsilon": 0.1}
            | {"slimming": 1e-4, "stop": False},
        ),
        (
            recipes.gem_miner("resnet20", "cifar10", 0.5),
            {"target_sparsity": 0.5, "every": 8, "exact": False},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_recipe_makes_the_callback_by_its_own_names(recipe, own):
    fields = {field.name for field in dataclasses.fields(recipe)}
    others = {k: v for k, v in own.items() if k not in fields}
    others.pop("epochs_per_round", None)
    callback = recipe.callback(**others)
    found = {**vars(callback), **vars(vars(callback).get("plan", callback))}
    for name, value in own.items():
        assert found[name] == value
    # What is asked for comes before what the recipe says.
    ((name, value),) = {
        "IterativeMagnitudePruning": {"prune_fraction": 0.5},
        "EarlyBird": {"window": 3},
        "IterativeFreezing": {"every": 2},
    }[type(callback).__name__].items()
    changed = recipe.callback(**{name: value})
    found = {**vars(changed), **vars(vars(changed).get("plan", changed))}
    assert found[name] == value
