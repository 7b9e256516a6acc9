"""Many runs of methods, densities and seeds; each is a directory."""

from tf_tickets.zoo.experiments.experiment import Experiment, Named
from tf_tickets.zoo.experiments.methods import METHODS
from tf_tickets.zoo.experiments.runner import grid, results, run, run_on_ray
from tf_tickets.zoo.experiments.summary import plot, summarize, write_csv
from tf_tickets.zoo.experiments.task import Choices, Task, Trial

__all__ = [
    "METHODS",
    "Choices",
    "Experiment",
    "Named",
    "Task",
    "Trial",
    "grid",
    "plot",
    "results",
    "run",
    "run_on_ray",
    "summarize",
    "write_csv",
]
