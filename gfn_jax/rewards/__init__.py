"""log R of every prefix of a completion, in nats."""

from gfn_jax.rewards.automaton import AutomatonReward, WordReward
from gfn_jax.rewards.compose import Adapted, Product, Rearranged
from gfn_jax.rewards.posterior import PosteriorReward, sequential_log_reward
from gfn_jax.rewards.table import TableReward

__all__ = [
    "Adapted",
    "AutomatonReward",
    "PosteriorReward",
    "Product",
    "Rearranged",
    "TableReward",
    "WordReward",
    "sequential_log_reward",
]
