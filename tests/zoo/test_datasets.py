"""The digits, and what all data sets share."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from tf_tickets.zoo import datasets, models, recipes
from tf_tickets.zoo.datasets.dataset import Examples

ROOT = Path(__file__).parents[2]


def arrays(batches):
    parts = list(batches.as_numpy_iterator())
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def rows(images):
    """Images as hashable rows, whatever their order."""
    return [np.round(image, 4).tobytes() for image in images]


def everything(dataset):
    """All three splits; `dataset` must not drop training images."""
    return [
        arrays(split)
        for split in (dataset.train, dataset.validation, dataset.test)
    ]


def test_sizes_and_description():
    digits = datasets.load("digits")
    assert (digits.name, digits.input_shape, digits.classes) == (
        "digits",
        (8, 8, 1),
        10,
    )
    assert digits.train_size + digits.validation_size + digits.test_size == 1797
    assert (digits.validation_size, digits.test_size) == (299, 300)
    assert digits.steps_per_epoch == 9 == len(list(digits.train))
    assert len(arrays(digits.validation)[1]) == 299
    assert len(arrays(digits.test)[1]) == 300
    assert digits.train.element_spec == (
        tf.TensorSpec((128, 8, 8, 1), tf.float32),
        tf.TensorSpec((128,), tf.int64),
    )


def test_splits_are_stratified_disjoint_and_complete():
    source = load_digits()
    splits = everything(datasets.load("digits", batch_size=1198))
    shares = np.bincount(source.target) / 1797
    for _, labels in splits:
        counts = np.bincount(labels, minlength=10)
        assert (np.abs(counts - shares * len(labels)) <= 1.5).all()
    found = sorted(row for images, _ in splits for row in rows(images))
    pixels = np.concatenate([images for images, _ in splits])
    assert len(pixels) == 1797
    # Undo the standardization with statistics taken from the outside.
    train = splits[0][0]
    assert abs(train.mean()) < 1e-4 and abs(train.std() - 1) < 1e-4
    low, high = pixels.min(), pixels.max()
    raw = np.sort(np.round((pixels - low) / (high - low) * 16).reshape(-1, 64))
    expected = np.sort(source.images.reshape(-1, 64))
    assert sorted(map(bytes, raw.astype("u1"))) == sorted(
        map(bytes, expected.astype("u1"))
    )
    # As many different rows as in the source: no example is in two splits.
    assert len(set(found)) == len(
        {bytes(r.astype("u1")) for r in source.images.reshape(-1, 64)}
    )


def test_the_split_never_changes():
    """Results on the digits can be compared from one version to the next."""
    labels = arrays(datasets.load("digits").test)[1]
    expected = [5, 2, 4, 6, 7, 9, 3, 4, 6, 8, 5, 0, 1, 7, 3, 9, 9, 2, 0, 1]
    assert labels[:20].tolist() == expected


def test_the_split_is_the_same_for_every_seed():
    one = datasets.load("digits", batch_size=1198, seed=1)
    two = datasets.load("digits", batch_size=1198, seed=2)
    for (a, _), (b, _) in zip(everything(one), everything(two), strict=True):
        assert sorted(rows(a)) == sorted(rows(b))
    assert rows(arrays(one.train)[0]) != rows(arrays(two.train)[0])


@pytest.mark.parametrize("augment", [False, True])
def test_a_seed_repeats_its_epochs_and_epochs_differ(augment):
    one = datasets.load("digits", seed=3, augment=augment)
    two = datasets.load("digits", seed=3, augment=augment)
    first, second = arrays(one.train), arrays(one.train)
    for epoch in (first, second):
        again = arrays(two.train)
        np.testing.assert_array_equal(epoch[0], again[0])
        np.testing.assert_array_equal(epoch[1], again[1])
    assert not np.array_equal(first[0], second[0])
    other = datasets.load("digits", seed=4, augment=augment)
    assert not np.array_equal(first[0], arrays(other.train)[0])


def test_augmentation_shifts_training_images_only_and_anew():
    plain = datasets.load("digits", batch_size=1198, augment=False)
    shifted = datasets.load("digits", batch_size=1198, augment=True)
    known = set(rows(arrays(plain.train)[0]))
    first, second = (set(rows(arrays(shifted.train)[0])) for _ in range(2))
    # One shift in nine is none; the others are new in each epoch, so what is
    # kept in memory are the images before augmentation.
    for epoch in (first, second):
        assert 50 < len(epoch & known) < 250
    assert len(first - second) > 500
    default = datasets.load("digits", batch_size=1198)
    assert set(rows(arrays(default.train)[0])) == known
    for name in ("validation", "test"):
        np.testing.assert_array_equal(
            arrays(getattr(plain, name))[0], arrays(getattr(shifted, name))[0]
        )


def test_labels_stay_with_their_images():
    source = load_digits()
    by_image = {
        bytes(image.reshape(64).astype("u1")): label
        for image, label in zip(source.images, source.target, strict=True)
    }
    for images, labels in everything(datasets.load("digits", batch_size=1198)):
        step = 16 / (images.max() - images.min())
        raw = np.round((images - images.min()) * step).astype("u1")
        for image, label in zip(raw, labels, strict=True):
            assert by_image[bytes(image.reshape(64))] == label


def test_each_augmentation_of_each_batch_draws_for_itself():
    seeds = []

    def note(images, seed):
        seed = tf.cast(seed, tf.float64) * tf.ones_like(images[..., :1])
        return tf.concat([images, seed], axis=-1)

    examples = Examples(np.zeros((8, 1, 1, 1)), np.arange(8))
    batches = examples.batches(
        4,
        normalize=tf.identity,
        augmentations=(note, note),
        shuffle_seed=0,
    )
    for _ in range(2):
        for images, _ in batches.as_numpy_iterator():
            first, second = np.split(images[0, 0, 0, 1:], 2)
            seeds += [tuple(first), tuple(second)]
    assert len(set(seeds)) == len(seeds) == 8


def test_nothing_held_out():
    digits = datasets.load("digits", validation_split=0.0)
    assert digits.validation is None
    assert (digits.train_size, digits.validation_size) == (1497, 0)


def test_pipelines_are_not_autotuned():
    digits = datasets.load("digits")
    for split in (digits.train, digits.validation, digits.test):
        assert split.options().autotune.enabled is False


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"batch_size": True},
        {"batch_size": 1199},
        {"data_dir": 3},
        {"augment": "yes"},
        {"seed": -1},
        {"seed": None},
        {"validation_split": 1.0},
        {"validation_split": -0.1},
    ],
)
def test_options_are_checked(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"Received: {name}={value!r}"):
        datasets.load("digits", **options)


def test_numbers_of_numpy_are_options_too():
    digits = datasets.load("digits", batch_size=np.int64(64), seed=np.int32(1))
    assert (digits.batch_size, type(digits.batch_size)) == (64, int)


def test_fewer_than_one_of_each_class_can_be_held_out():
    examples = Examples(np.arange(20), np.arange(20) % 4)
    for number in (0, 3, 20):
        rest, held = examples.hold_out(number)
        assert (len(rest), len(held)) == (20 - number, number)
        assert set(rest.records) | set(held.records) == set(range(20))
    assert np.bincount(examples.hold_out(3)[1].labels).max() == 1


def test_a_function_stands_for_a_name():
    """It gets the options that `load` was given, checked."""
    seen = []

    def half(settings):
        seen.append(settings)
        return datasets.load("digits", batch_size=settings.batch_size // 2)

    data = datasets.load(half, batch_size=np.int64(64), seed=3)
    assert data.batch_size == 32
    assert seen == [datasets.Settings(batch_size=64, seed=3)]
    with pytest.raises(ValueError, match="Received: seed=-1"):
        datasets.load(half, seed=-1)
    with pytest.raises(ValueError, match="must be a `Dataset`. Received: 3"):
        datasets.load(lambda settings: 3)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(
        ValueError, match="'digits', 'cifar10'.*Received: .*'mnist"
    ):
        datasets.load("mnist")


def test_a_few_examples_of_every_class():
    digits = datasets.load("digits", batch_size=64)
    images, labels = datasets.few_of_each(digits.train, 10, classes=10)
    assert labels.tolist() == np.repeat(range(10), 10).tolist()
    there = arrays(digits.train)
    known = dict(zip(rows(there[0]), there[1], strict=True))
    assert all(
        known.get(row, label) == label
        for row, label in zip(rows(images), labels, strict=True)
    )
    assert len(set(rows(images))) == 100
    with pytest.raises(ValueError, match=r"fewer than 200.*\{0: 1\d\d"):
        datasets.few_of_each(digits.train, 200, classes=10)


def test_sequences_of_mnist1d():
    pytest.importorskip("mnist1d")
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    found = datasets.load("mnist1d")
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    sizes = found.train_size, found.validation_size, found.test_size
    assert sizes == (3600, 400, 1000)
    assert (found.input_shape, found.classes) == ((40, 1), 10)
    x, y = arrays(found.test)
    assert x.shape == (1000, 40, 1) and set(y) == set(range(10))
    # The generator of the package: mean 0 and deviation 1 over everything.
    everywhere = np.concatenate([part[0] for part in everything(found)])
    assert abs(everywhere.mean()) < 0.02 and abs(everywhere.std() - 1) < 0.02
    again = arrays(datasets.load("mnist1d", seed=5).test)
    np.testing.assert_array_equal(again[0], x)


def test_mnist1d_names_its_extra(monkeypatch):
    from tf_tickets.zoo.datasets import mnist1d

    mnist1d._generated.cache_clear()
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    with pytest.raises(ImportError, match=r"tf_tickets\[mnist1d\]"):
        datasets.load("mnist1d")


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"tf_tickets\[datasets\]"):
        datasets.load("digits")


def test_the_recipe_for_digits_learns_them():
    recipe = recipes.iterative_pruning("digits_cnn", "digits")
    digits = datasets.load(recipe.dataset, batch_size=recipe.batch_size)
    model = models.get(recipe.model, weight_decay=recipe.weight_decay)
    model.compile(
        recipe.optimizer(digits.steps_per_epoch),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        digits.train, epochs=recipe.epochs, shuffle=False, verbose=0
    )
    assert history.history["accuracy"][-1] > 0.98
    assert model.evaluate(digits.test, verbose=0)[1] > 0.93
