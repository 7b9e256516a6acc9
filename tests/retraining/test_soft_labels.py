import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import ZerosHold, batches, compiled, mlp
from tf_tickets.retraining import (
    LabelSmoothing,
    distiller,
    keras_label_smoothing,
    smoothed,
    with_teacher_logits,
)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(y, logits, alpha, spread):
    classes = logits.shape[-1]
    if spread == "others":
        q = np.full(logits.shape, alpha / (classes - 1))
        q[np.arange(len(y)), y] = 1 - alpha
    else:
        q = np.full(logits.shape, alpha / classes)
        q[np.arange(len(y)), y] += 1 - alpha
    return -(q * np.log(softmax(logits))).sum(-1)


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(6, 5)).astype("float32") * 3


LABELS = np.array([0, 4, 2, 2, 1, 3])


@pytest.mark.parametrize("spread", ["others", "all"])
def test_the_loss_is_the_one_computed_by_hand(logits, spread):
    expected = by_hand(LABELS, logits.astype("float64"), 0.2, spread)
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


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_the_conversion_is_exact(classes, alpha):
    """Keras' targets at the converted smoothing are the paper's."""
    smoothing = keras_label_smoothing(alpha, classes)
    one_hot = np.eye(classes)
    of_keras = one_hot * (1 - smoothing) + smoothing / classes
    papers = np.where(one_hot == 1, 1 - alpha, alpha / (classes - 1))
    np.testing.assert_allclose(of_keras, papers, atol=1e-15)


def test_no_smoothing_is_the_plain_cross_entropy(logits):
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(
        LabelSmoothing(0.0)(LABELS, logits), plain(LABELS, logits), rtol=1e-6
    )


@pytest.mark.parametrize("jit", [False, True])
def test_it_trains_and_is_saved(data, tmp_path, jit):
    model = mlp()
    model.compile(
        "adam", LabelSmoothing(0.3), metrics=["accuracy"], jit_compile=jit
    )
    first, *_, last = model.fit(*data, epochs=8, verbose=0).history["loss"]
    assert last < first
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
        (lambda: distiller(mlp()), "either a `teacher` or"),
        (lambda: distiller(mlp(), mlp(), cached=True), "either a `teacher` or"),
        (
            lambda: with_teacher_logits(
                mlp(), tf.data.Dataset.from_tensors((1, 2)).repeat()
            ),
            "endless",
        ),
    ],
)
def test_bad_requests_get_one_clear_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def pair(data):
    teacher = compiled(mlp(), "adam")
    teacher.fit(*data, epochs=3, verbose=0)
    student = mlp(hidden=16)
    ticket = tt.prune(student, sparsity=0.5)
    ticket.apply(student)
    return student, teacher, ticket


def test_distillation_is_the_formula(data):
    """w CE + (1 - w) T^2 KL(teacher || student), at temperature T."""
    student, teacher, _ = pair(data)
    model = distiller(
        student, teacher, temperature=2.0, student_loss_weight=0.3
    )
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x, y = data
    s, t = (m(x).numpy().astype("float64") for m in (student, teacher))
    p, q = softmax(t / 2), softmax(s / 2)
    kl = (p * np.log(p / q)).sum(-1).mean()
    ce = by_hand(y, s, 0.0, "all").mean()
    loss = model.compute_loss(x=x, y=y, y_pred=student(x))
    np.testing.assert_allclose(loss, 0.3 * ce + 0.7 * 4 * kl, rtol=1e-4)


def test_masks_hold_under_distillation_and_the_cache_changes_nothing(data):
    student, teacher, ticket = pair(data)
    start = student.get_weights()
    trained = []
    ready = with_teacher_logits(teacher, batches(*data))
    calls = []
    for cached, train in ((False, batches(*data)), (True, ready)):
        student.set_weights(start)
        keras.utils.set_random_seed(0)
        student.get_layer("drop").seed_generator.state.assign([0, 1])
        model = distiller(student, None if cached else teacher, cached=cached)
        model.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        hold = ZerosHold(ticket.masks)
        # ZerosHold looks up weights by path, and the teacher has the same.
        hold.set_model = lambda model, hold=hold: setattr(
            hold, "_model", student
        )
        history = model.fit(train, epochs=2, verbose=0, callbacks=[hold])
        assert hold.checked == 2 * 4 * len(ticket.masks)
        calls.append(history.history["accuracy"])
        trained.append(student.get_weights())
    assert calls[0] == calls[1]
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert any((a != b).any() for a, b in zip(start, trained[0], strict=True))
