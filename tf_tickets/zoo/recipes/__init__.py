"""The training recipes of the lottery-ticket papers, as data."""

from tf_tickets.zoo.recipes.early_bird import EarlyBirdRecipe, early_bird
from tf_tickets.zoo.recipes.pruning import PruningRecipe, iterative_pruning
from tf_tickets.zoo.recipes.rare_gems import (
    FinetuneRecipe,
    GemMinerRecipe,
    edge_popup,
    finetune,
    gem_miner,
)
from tf_tickets.zoo.recipes.recipe import Recipe
from tf_tickets.zoo.recipes.spending import SpendingRecipe, spending

__all__ = [
    "EarlyBirdRecipe",
    "FinetuneRecipe",
    "GemMinerRecipe",
    "PruningRecipe",
    "Recipe",
    "SpendingRecipe",
    "early_bird",
    "edge_popup",
    "finetune",
    "gem_miner",
    "iterative_pruning",
    "spending",
]
