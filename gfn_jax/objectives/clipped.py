"""Proximal updates: rows are learnt from several times, and what has moved too far since they were drawn is left alone.

With r_t = q(z_t | z_<t) / q_old(z_t | z_<t), the advantage A_t of the choice and the clip c, of one choice
(Schulman et al. 2017, arXiv:1707.06347):

    policy    -min(r_t A_t, clip(r_t, 1 - c, 1 + c) A_t)
    value     1/2 max((V - G)^2, (clip(V, V_old - d, V_old + d) - G)^2)

where G = A_t + V_old is what V should have been; and generalised advantages (Schulman et al. 2016, arXiv:1506.02438),
undiscounted, over choices alone, the next choice after t being t' and everything being 0 behind the last:

    A_t = delta_t + lambda A_t'         delta_t = reward_t + V_t' - V_t
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def clipped_surrogate(
    log_ratio: Float[Array, "*rows"], advantage: Float[Array, "*rows"], clip: float
) -> tuple[Float[Array, "*rows"], Bool[Array, "*rows"]]:
    """The policy's loss of each choice, and whether it was clipped, so that it has no gradient.

    Args:
        log_ratio: log q - log q_old in nats.
        advantage: constant.
        clip: c.
    """
    ratio = jnp.exp(log_ratio)
    free, bounded = ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage
    return -jnp.minimum(free, bounded), bounded < free


def clipped_square(
    value: Float[Array, "*rows"], old: Float[Array, "*rows"], aim: Float[Array, "*rows"], clip: float | None
) -> Float[Array, "*rows"]:
    """The value's loss in each state.

    Args:
        value: V.
        old: V_old, what it was when the rows were drawn.
        aim: G.
        clip: d, in the unit of the values; None does not clip.
    """
    loss = (value - aim) ** 2
    if clip is not None:
        loss = jnp.maximum(loss, (jnp.clip(value, old - clip, old + clip) - aim) ** 2)
    return loss / 2


def generalized_advantage(
    reward: Float[Array, "B T"], value: Float[Array, "B T"], action_mask: Bool[Array, "B T"], discount: float
) -> Float[Array, "B T"]:
    """A_t of each choice; 0 where there was none.

    Args:
        reward: of each choice, in nats.
        value: V of the state that it was made in.
        action_mask: where the policy chose. What a tool wrote and padding are passed over.
        discount: lambda; 1 is what followed, less V; 0 compares with the next value alone.
    """

    def back(carry: tuple[Array, Array], column: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        reward, value, chose = column
        following, advantage = carry
        found = reward + following - value + discount * advantage
        carry = jnp.where(chose, value, following), jnp.where(chose, found, advantage)
        return carry, jnp.where(chose, found, 0.0)

    nothing = jnp.zeros(reward.shape[:1], reward.dtype)
    columns = (reward.T, value.T, action_mask.T)
    return jax.lax.scan(back, (nothing, nothing), columns, reverse=True)[1].T
