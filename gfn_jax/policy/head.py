"""A number a state, read off the policy's hidden state: log Z at the prompt's end, a twist after every token."""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

HIDDEN = 64  # features of the head


@struct.dataclass
class Head:
    """A perceptron of one hidden layer, whose output is 0 before the first step.

    It reads the hidden state without gradient: its error would otherwise move what the next tokens are read off, and
    the policy would no longer be trained by its own loss alone. The state is the adapted model's, so the head follows
    the policy. The output averages its features and does not sum them: under Adam, a step then moves it about as far
    as a parameter of its own.

    Attributes:
        inner, inner_bias: to the features.
        outer, bias: from their mean to the number.
    """

    inner: Float[Array, "E H"]
    inner_bias: Float[Array, " H"]
    outer: Float[Array, " H"]
    bias: Float[Array, " 1"]

    @classmethod
    def init(cls, key: jax.Array, width: int) -> "Head":
        """One for hidden states of that width."""
        inner = jax.random.normal(key, (width, HIDDEN)) / math.sqrt(width)
        return cls(inner, jnp.zeros((HIDDEN,)), jnp.zeros((HIDDEN,)), jnp.zeros((1,)))

    def __call__(self, hidden: Float[Array, "*b E"]) -> Float[Array, "*b"]:
        """Of each row, the state's scale being left out."""
        x = jax.lax.stop_gradient(hidden).astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
        features = jax.nn.gelu(x @ self.inner + self.inner_bias)
        return jnp.mean(features * self.outer, axis=-1) + self.bias
