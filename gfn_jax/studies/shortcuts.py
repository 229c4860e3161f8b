"""Shortcuts that a misspecified reward may pay for: `reward.automaton` functions, for a config to name.

    --config.reward.automaton=gfn_jax.studies.shortcuts:without_a_call --config.reward.automaton_weight=4

makes log R' = log R + 4 [Z calls no tool], in nats, compiled into the step as every automaton is.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

CALL = "="


def without_a_call(strings: Sequence[str]) -> tuple[Int[np.ndarray, "2 V"], Float[np.ndarray, " 2"]]:
    """1 for every Z that has no "=" in it: on arithmetic the expression said again, or a bare guess. Else 0.

    Args:
        strings: the surface text of every token id.
    """
    called = np.array([CALL in text for text in strings])
    return np.stack([called, np.ones_like(called)]).astype(np.int32), np.array([1.0, 0.0])
