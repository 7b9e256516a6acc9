"""The registry of networks: a name for each, for scripts and flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras

from tf_tickets.zoo.models.cifar_resnet import resnet20, resnet32, resnet56
from tf_tickets.zoo.models.conv import conv2, conv4, conv6
from tf_tickets.zoo.models.digits_cnn import digits_cnn
from tf_tickets.zoo.models.lenet import lenet_300_100
from tf_tickets.zoo.models.mobilenet import mobilenet_v1, mobilenet_v2
from tf_tickets.zoo.models.resnet import resnet18, resnet34, resnet50
from tf_tickets.zoo.models.vgg import vgg16
from tf_tickets.zoo.models.wide_resnet import wide_resnet_28_2

_MODELS: dict[str, Callable[..., keras.Model]] = {
    function.__name__: function
    for function in (
        lenet_300_100,
        conv2,
        conv4,
        conv6,
        digits_cnn,
        vgg16,
        resnet20,
        resnet32,
        resnet56,
        resnet18,
        resnet34,
        resnet50,
        wide_resnet_28_2,
        mobilenet_v1,
        mobilenet_v2,
    )
}


def names() -> tuple[str, ...]:
    """The names that `get` knows.

    Example:

    >>> from tf_tickets.zoo import models
    >>> "resnet20" in models.names()
    True
    """
    return tuple(_MODELS)


def get(name: str, **options: Any) -> keras.Model:
    """Builds a network by its name.

    Args:
        name: One of `names()`.
        **options: Keyword arguments of the function of that name.

    Returns:
        A functional model that returns logits.

    Raises:
        ValueError: If there is no such name, or the network has no such
            option.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.get("resnet20", input_shape=(8, 8, 1)).output_shape
    (None, 10)
    """
    if name not in _MODELS:
        raise ValueError(
            f"`name` must be one of {', '.join(_MODELS)}. "
            f"Received: name={name!r}"
        )
    function = _MODELS[name]
    known = list(inspect.signature(function).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"The options of {name!r} are {', '.join(known)}. "
            f"Received: {', '.join(unknown)}"
        )
    return function(**options)
