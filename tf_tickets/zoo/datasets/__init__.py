"""Data sets of the lottery-ticket papers as `tf.data` pipelines.

Importing this package imports neither TensorFlow Datasets nor scikit-learn:
`load` does, when a data set needs them.
"""

from tf_tickets.zoo.datasets.dataset import Dataset, Settings
from tf_tickets.zoo.datasets.registry import DATASETS, load, names
from tf_tickets.zoo.datasets.sampling import few_of_each

__all__ = ["DATASETS", "Dataset", "Settings", "few_of_each", "load", "names"]
