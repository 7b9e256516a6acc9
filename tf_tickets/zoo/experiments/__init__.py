"""Many runs of methods, densities and seeds; each is a directory."""

from tf_tickets.zoo.experiments.experiment import Experiment
from tf_tickets.zoo.experiments.methods import METHODS
from tf_tickets.zoo.experiments.runner import grid, results, run, run_on_ray

__all__ = ["METHODS", "Experiment", "grid", "results", "run", "run_on_ray"]
