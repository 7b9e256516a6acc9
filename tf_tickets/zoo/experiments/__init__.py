"""Many runs of methods, densities and seeds; each is a directory."""

from tf_tickets.zoo.experiments.experiment import Experiment, Named
from tf_tickets.zoo.experiments.methods import METHODS, Task, Trial
from tf_tickets.zoo.experiments.runner import grid, results, run, run_on_ray

__all__ = [
    "METHODS",
    "Experiment",
    "Named",
    "Task",
    "Trial",
    "grid",
    "results",
    "run",
    "run_on_ray",
]
