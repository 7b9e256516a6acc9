"""Distillation from the dense teacher, with its logits computed once."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_tickets import checks


def distiller(
    student: keras.Model,
    teacher: keras.Model | None = None,
    *,
    temperature: float = 3.0,
    student_loss_weight: float = 0.5,
    cached: bool = False,
) -> keras.distillation.Distiller:
    r"""A `keras.distillation.Distiller` of a ticket.

    $w\,L(y, s) + (1-w)\,T^2\,KL(softmax(t/T)\,\|\,softmax(s/T))$ with the
    student's logits $s$ and the teacher's $t$. Compile and fit it; then use
    ``student``. Masks on the student's weights hold while it trains. (An
    optimizer with ``use_ema=True`` belongs to the distiller and is not seen
    by the student's masks: call `tf_tickets.masking.project` after it.)

    Args:
        student: The ticket's model; it returns logits.
        teacher: The trained dense model, which gets frozen. Default `None`,
            for logits that are ``cached``.
        temperature: Positive number $T$. Default 3.
        student_loss_weight: Number $w$ in [0, 1]. Default 0.5.
        cached: Boolean: whether the inputs come from `with_teacher_logits`,
            as pairs (input, logits), so that the teacher need not run.
            Default `False`.

    Returns:
        The distiller, not compiled.

    Raises:
        ValueError: If there are both a teacher and cached logits or neither,
            a number is out of its range, or the student's inputs are not
            known.

    Reference:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.

    Example:

    >>> import tf_tickets as tt
    >>> student, teacher = (
    ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    ...     for _ in range(2))
    >>> tt.prune(student, sparsity=0.5).apply(student)
    >>> distiller = tt.retraining.distiller(student, teacher)
    >>> distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(
    ...     from_logits=True))
    >>> _ = distiller.fit(np.ones((8, 4)), np.zeros(8), verbose=0)
    >>> int((student.layers[0].kernel.numpy() == 0).sum())
    6
    """
    if cached == (teacher is not None):
        raise ValueError(
            "Give either a `teacher` or `cached=True`. "
            f"Received: teacher={teacher!r}, cached={cached!r}"
        )
    temperature = checks.number("temperature", temperature, "(0, inf)")
    student_loss_weight = checks.number(
        "student_loss_weight", student_loss_weight, "[0, 1]"
    )
    pupil = student
    if cached:
        if len(getattr(student, "inputs", None) or ()) != 1:
            raise ValueError(
                "With cached logits the student must have one known input. "
                f"Received: student={student.name!r}"
            )
        pupil, teacher = _readers(student)
    return keras.distillation.Distiller(
        teacher=teacher,
        student=pupil,
        # An instance: named by its string, as by default, Keras 3.15 computes
        # the divergence of the raw logits, without a softmax.
        distillation_losses=keras.distillation.LogitsDistillation(
            temperature=temperature, loss=keras.losses.KLDivergence()
        ),
        student_loss_weight=student_loss_weight,
    )


def with_teacher_logits(
    teacher: keras.Model, dataset: tf.data.Dataset, path: str = ""
) -> tf.data.Dataset:
    """Add the teacher's logits to a dataset, computed once.

    The first pass over the result runs the teacher, later ones read its
    logits from a cache. So the order and the augmentation of the first pass
    are kept: shuffle after this, and augment after it only in ways that would
    not change the logits.

    Args:
        teacher: A trained model that returns logits.
        dataset: A finite `tf.data.Dataset` of batches (x, y).
        path: String: file prefix of the cache. Default empty: it is kept in
            memory.

    Returns:
        A dataset of batches ``((x, logits), y)``, for
        ``distiller(student, cached=True)``.

    Raises:
        ValueError: If the dataset is endless, or something else than a
            dataset.

    Example:

    >>> import tensorflow as tf, tf_tickets as tt
    >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> data = tf.data.Dataset.from_tensor_slices(
    ...     (np.ones((8, 4), "float32"), np.zeros(8))).batch(4)
    >>> ready = tt.retraining.with_teacher_logits(teacher, data)
    >>> (x, logits), y = next(iter(ready))
    >>> tuple(logits.shape)
    (4, 3)
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise ValueError(
            "`dataset` must be a tf.data.Dataset of batches (x, y). "
            f"Received: dataset={dataset!r}"[:500]
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "An endless dataset cannot be cached: cache before `repeat`. "
            f"Received: dataset={dataset!r}"
        )
    return dataset.map(lambda x, y: ((x, teacher(x, training=False)), y)).cache(
        path
    )


def _readers(student: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The student beside logits it ignores, and a model that returns them."""
    x = keras.Input(
        batch_shape=student.inputs[0].shape, dtype=student.inputs[0].dtype
    )
    logits = keras.Input(
        batch_shape=student.outputs[0].shape, dtype=student.outputs[0].dtype
    )
    return (
        keras.Model((x, logits), student(Pick(0)([x, logits])), name="student"),
        keras.Model((x, logits), Pick(1)([x, logits]), name="teacher"),
    )


@keras.saving.register_keras_serializable("tf_tickets")
class Pick(keras.layers.Layer):
    """Returns one of its inputs.

    So the others count as used, which Keras before 3.13 asks of every input.

    Args:
        index: Whole number: the position of the input to return.

    Example:

    >>> float(Pick(1)([np.zeros(()), np.ones(())]))
    1.0
    """

    def __init__(self, index: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.index = index

    def call(self, inputs: Any) -> Any:
        """``inputs[index]``."""
        return inputs[self.index]

    def get_config(self) -> dict[str, Any]:
        """The index and what a layer has."""
        return {**super().get_config(), "index": self.index}
