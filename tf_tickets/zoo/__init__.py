"""The zoo: networks, data sets and recipes of the lottery-ticket papers."""

from tf_tickets.zoo import datasets, models, recipes

__all__ = ["datasets", "models", "recipes"]
