import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import ZerosHold, batches, compiled, mlp
from tests.retraining.conftest import cross_entropy, softmax
from tf_tickets.retraining import distiller, with_teacher_logits


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
    ce = cross_entropy(y, s, 0.0, "all").mean()
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


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: distiller(mlp()), "either a `teacher` or"),
        (lambda: distiller(mlp(), mlp(), cached=True), "either a `teacher` or"),
        (lambda: distiller(mlp(), mlp(), temperature=0), "temperature=0"),
        (
            lambda: distiller(mlp(), mlp(), student_loss_weight=1.5),
            "student_loss_weight=1.5",
        ),
        (
            lambda: with_teacher_logits(
                mlp(), tf.data.Dataset.from_tensors((1, 2)).repeat()
            ),
            "endless",
        ),
        (lambda: with_teacher_logits(mlp(), (1, 2)), "tf.data.Dataset"),
    ],
)
def test_bad_requests_get_one_clear_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
