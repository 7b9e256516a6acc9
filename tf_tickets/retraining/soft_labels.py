"""Label smoothing, over the other classes or over all of them."""

from __future__ import annotations

from typing import Any, Literal

import keras

from tf_tickets import checks

Spread = Literal["others", "all"]


def keras_label_smoothing(alpha: float, classes: int) -> float:
    r"""Convert a smoothing over the other classes to Keras' over all.

    *Spending Your Winning Lottery Better* leaves $1 - \alpha$ with the true
    class and gives $\alpha/(C-1)$ to each other one. Keras spreads its
    smoothing over all $C$ classes, the true one included. The two are the
    same for $\alpha_{Keras} = \alpha\,C/(C-1)$.

    Args:
        alpha: Number in [0, (classes - 1) / classes]: share of the label
            that goes to the other classes.
        classes: Whole number of at least 2: $C$.

    Returns:
        The ``label_smoothing`` of `keras.losses.CategoricalCrossentropy`, in
        [0, 1].

    Raises:
        ValueError: If either is out of its range.

    Example:

    >>> from tf_tickets.retraining import keras_label_smoothing
    >>> round(keras_label_smoothing(0.1, 10), 4)
    0.1111
    """
    classes = checks.whole("classes", classes, least=2)
    alpha = checks.number("alpha", alpha)
    if not 0.0 <= alpha <= (classes - 1) / classes:
        raise ValueError(
            f"`alpha` must be in [0, {classes - 1}/{classes}]: beyond that "
            "the true class would get less than the others. "
            f"Received: alpha={alpha!r}, classes={classes!r}"
        )
    return alpha * classes / (classes - 1)


@keras.saving.register_keras_serializable(package="tf_tickets")
class LabelSmoothing(keras.losses.Loss):
    r"""Cross-entropy with smoothed labels, sparse or one-hot.

    $-\sum_c q_c \log p_c$ with $q = 1 - \alpha$ for the true class and
    $\alpha/(C-1)$ for the others (``spread="others"``), or $q = 1 - \alpha +
    \alpha/C$ and $\alpha/C$ (``spread="all"``, as Keras counts).

    Args:
        alpha: Number in [0, 1): share of the label that is spread. Default
            0.1.
        spread: `"others"` or `"all"`: over which classes. Default
            `"others"`.
        from_logits: Boolean: whether the model returns logits, or
            probabilities. Default `True`.
        axis: Whole number: axis of the classes. Default -1.
        reduction: As in `keras.losses.Loss`. Default
            `"sum_over_batch_size"`.
        name: Name of the loss. Default `"label_smoothing"`.
        dtype: As in `keras.losses.Loss`. Default `None`.

    Raises:
        ValueError: If ``alpha`` or ``spread`` is out of its range.

    Reference:
        Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016;
        Jaiswal et al., "Spending Your Winning Lottery Better After Drawing
        It", 2021, section 3.2.

    Example:

    >>> from tf_tickets.retraining import LabelSmoothing
    >>> loss = LabelSmoothing(0.1, from_logits=False)
    >>> p = np.array([[0.9, 0.05, 0.05]], "float32")
    >>> round(float(loss(np.array([0]), p)), 4)
    0.3944
    >>> bool(loss(np.array([[1.0, 0.0, 0.0]]), p) == loss(np.array([0]), p))
    True
    """

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        spread: Spread = "others",
        from_logits: bool = True,
        axis: int = -1,
        reduction: str = "sum_over_batch_size",
        name: str = "label_smoothing",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.alpha = checks.number("alpha", alpha, "[0, 1)")
        checks.choice("spread", spread, ("others", "all"))
        self.spread = spread
        self.from_logits = from_logits
        self.axis = axis

    def call(self, y_true: Any, y_pred: Any) -> Any:
        classes = y_pred.shape[self.axis]
        if classes is None:
            raise ValueError(
                "The number of classes must be known. Received: y_pred of "
                f"shape {y_pred.shape}"
            )
        smoothing = self.alpha
        if self.spread == "others":
            smoothing = keras_label_smoothing(self.alpha, classes)
        y_true = keras.ops.convert_to_tensor(y_true)
        if _is_sparse(y_true, y_pred, self.axis):
            if len(y_true.shape) == len(y_pred.shape):
                y_true = keras.ops.squeeze(y_true, self.axis)
            y_true = keras.ops.one_hot(
                keras.ops.cast(y_true, "int32"), classes, axis=self.axis
            )
        return keras.losses.categorical_crossentropy(
            keras.ops.cast(y_true, y_pred.dtype),
            y_pred,
            from_logits=self.from_logits,
            label_smoothing=smoothing,
            axis=self.axis,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "spread": self.spread,
            "from_logits": self.from_logits,
            "axis": self.axis,
        }


def smoothed(
    loss: Any, alpha: float = 0.1, spread: Spread = "others"
) -> LabelSmoothing:
    """The smoothed form of a cross-entropy that a model is compiled with.

    Args:
        loss: A sparse or categorical cross-entropy of Keras, as an object, a
            function or a name.
        alpha: As in `LabelSmoothing`. Default 0.1.
        spread: As in `LabelSmoothing`. Default `"others"`.

    Returns:
        A `LabelSmoothing` with the options of the loss.

    Raises:
        ValueError: If the loss is something else, or has a label smoothing or
            an ignored class of its own.

    Example:

    >>> from tf_tickets.retraining import smoothed
    >>> smoothed("sparse_categorical_crossentropy").from_logits
    False
    """
    kinds = (
        keras.losses.SparseCategoricalCrossentropy,
        keras.losses.CategoricalCrossentropy,
    )
    functions = (
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.categorical_crossentropy,
    )
    try:
        found = keras.losses.get(loss)
    except (ValueError, TypeError):
        found = None
    config: dict[str, Any] = {}
    if isinstance(found, kinds):
        config = found.get_config()
    elif not any(found is function for function in functions):
        raise ValueError(
            "Labels can be smoothed for a sparse or a categorical "
            "cross-entropy of Keras, as one loss for one output. "
            f"Received: loss={loss!r}"
        )
    for option, plain in (("label_smoothing", 0.0), ("ignore_class", None)):
        if config.get(option, plain) != plain:
            raise ValueError(
                f"This loss has a {option} of its own, which smoothing would "
                f"drop. Received: {option}={config[option]!r}"
            )
    return LabelSmoothing(
        alpha,
        spread=spread,
        from_logits=config.get("from_logits", False),
        axis=config.get("axis", -1),
        reduction=config.get("reduction", "sum_over_batch_size"),
    )


def _is_sparse(y_true: Any, y_pred: Any, axis: int) -> bool:
    if len(y_true.shape) < len(y_pred.shape):
        return True
    return y_true.shape[axis] == 1 and y_pred.shape[axis] != 1
