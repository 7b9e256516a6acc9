"""The zoo: networks, data sets and recipes of the lottery-ticket papers."""

from tf_tickets.zoo import datasets, experiments, models, recipes

__all__ = ["datasets", "experiments", "models", "recipes"]
