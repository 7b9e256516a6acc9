import keras
import numpy as np
import pytest

from tests.conftest import mlp
from tests.retraining.conftest import cross_entropy, softmax
from tf_tickets.retraining import (
    LabelSmoothing,
    keras_label_smoothing,
    smoothed,
)


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(6, 5)).astype("float32") * 3


LABELS = np.array([0, 4, 2, 2, 1, 3])


@pytest.mark.parametrize("spread", ["others", "all"])
def test_the_loss_is_the_one_computed_cross_entropy(logits, spread):
    expected = cross_entropy(LABELS, logits.astype("float64"), 0.2, spread)
    one_hot = np.eye(5)[LABELS]
    weight = np.arange(6.0)
    for y in (LABELS, LABELS[:, None], LABELS.astype("uint8"), one_hot):
        loss = LabelSmoothing(0.2, spread=spread)
        np.testing.assert_allclose(loss(y, logits), expected.mean(), rtol=1e-5)
        np.testing.assert_allclose(
            loss(y, logits, sample_weight=weight),
            (expected * weight).mean(),
            rtol=1e-5,
        )
    probabilities = LabelSmoothing(0.2, spread=spread, from_logits=False)
    np.testing.assert_allclose(
        probabilities(LABELS, softmax(logits)), expected.mean(), rtol=1e-4
    )


def test_without_an_alpha_the_true_class_keeps_nine_tenths(logits):
    """The paper's, wherever it can be left out."""
    expected = cross_entropy(LABELS, logits.astype("float64"), 0.1, "others")
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for loss in (LabelSmoothing(), smoothed(plain)):
        np.testing.assert_allclose(
            loss(LABELS, logits), expected.mean(), rtol=1e-5
        )


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_the_conversion_is_exact(classes, alpha):
    """Keras' targets at the converted smoothing are the paper's."""
    smoothing = keras_label_smoothing(alpha, classes)
    one_hot = np.eye(classes)
    of_keras = one_hot * (1 - smoothing) + smoothing / classes
    papers = np.where(one_hot == 1, 1 - alpha, alpha / (classes - 1))
    np.testing.assert_allclose(of_keras, papers, atol=1e-15)


def test_the_greatest_smoothing_is_one_that_keras_takes():
    for classes in range(2, 300):
        alpha = (classes - 1) / classes
        smoothing = keras_label_smoothing(alpha, classes)
        keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
        assert smoothing == pytest.approx(1)
        with pytest.raises(ValueError, match="less than the others"):
            keras_label_smoothing(alpha + 1e-9, classes)


def test_no_smoothing_is_the_plain_cross_entropy(logits):
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(
        LabelSmoothing(0.0)(LABELS, logits), plain(LABELS, logits), rtol=1e-6
    )


@pytest.mark.parametrize("jit", [False, True])
def test_it_trains(data, jit):
    model = mlp()
    model.compile("adam", LabelSmoothing(0.3), jit_compile=jit)
    first, *_, last = model.fit(*data, epochs=8, verbose=0).history["loss"]
    assert last < first


def test_it_is_saved(data, tmp_path):
    model = mlp()
    model.compile("adam", LabelSmoothing(0.3), metrics=["accuracy"])
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras")
    assert back.loss.get_config() == model.loss.get_config()
    assert back.evaluate(*data, verbose=0) == pytest.approx(
        model.evaluate(*data, verbose=0), rel=1e-5
    )


def test_a_compiled_loss_is_smoothed_as_it_is():
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, axis=1)
    config = smoothed(loss, 0.2, "all").get_config()
    assert (config["from_logits"], config["axis"]) == (True, 1)
    assert (config["alpha"], config["spread"]) == (0.2, "all")
    assert not smoothed(
        keras.losses.sparse_categorical_crossentropy
    ).from_logits


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LabelSmoothing(1.0), "alpha"),
        (lambda: LabelSmoothing(-0.1), "alpha"),
        (lambda: LabelSmoothing(spread="most"), "'others' or 'all'"),
        (lambda: keras_label_smoothing(0.1, 1), "classes"),
        (lambda: keras_label_smoothing(0.6, 2), "less than the others"),
        (lambda: smoothed("mse"), "cross-entropy of Keras"),
        (lambda: smoothed(None), "cross-entropy of Keras"),
        (lambda: smoothed({"a": "mse"}), "cross-entropy of Keras"),
        (
            lambda: smoothed(
                keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
            ),
            "label_smoothing of its own",
        ),
        (lambda: keras_label_smoothing(0.1, 2.5), "Received: classes=2.5"),
    ],
)
def test_bad_requests_get_one_clear_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
