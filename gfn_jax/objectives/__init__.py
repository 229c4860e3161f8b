"""Objectives: arrays in, a sum and its weight out. They know no model, no task and no tokenizer."""

from gfn_jax.objectives.mixture import OBJECTIVES, Objective

__all__ = ["OBJECTIVES", "Objective"]
