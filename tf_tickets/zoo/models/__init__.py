"""Networks of the lottery-ticket papers as functional Keras models.

Every layer has an explicit name, so variable paths are the same in every
process. Every network returns logits. Normalization has the momentum (0.9)
and epsilon (1e-5) of the published PyTorch networks, not Keras' defaults.
"""

from tf_tickets.zoo.models.blocks import NETWORKS, get, names
from tf_tickets.zoo.models.chains import (
    conv2,
    conv4,
    conv6,
    digits_cnn,
    lenet_300_100,
    vgg16,
)
from tf_tickets.zoo.models.mobilenets import mobilenet_v1, mobilenet_v2
from tf_tickets.zoo.models.resnets import (
    preresnet29,
    preresnet101,
    resnet1d,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet50,
    resnet56,
    wide_resnet_28_2,
)

__all__ = [
    "NETWORKS",
    "conv2",
    "conv4",
    "conv6",
    "digits_cnn",
    "get",
    "lenet_300_100",
    "mobilenet_v1",
    "mobilenet_v2",
    "names",
    "preresnet29",
    "preresnet101",
    "resnet1d",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet56",
    "vgg16",
    "wide_resnet_28_2",
]
