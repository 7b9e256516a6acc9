import tensorflow as tf

from tests import gallery

ARCHITECTURES = {
    "subclassed": gallery.subclassed,
    "nested": gallery.nested_twice,
    "shared": gallery.shared,
    "convolutional": gallery.convolutional,
    "attention": gallery.attention,
    "recurrent": gallery.recurrent,
}


def two_replicas():
    """A strategy over two logical CPUs that does not share a process badly.

    TensorFlow numbers the collectives of every MirroredStrategy anew, so the
    default reduction fails in the second strategy of a process whose
    gradients have another size, whatever the model.
    """
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
    )
