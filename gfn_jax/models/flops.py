"""Floating-point operations of matrix products, counted: what a step cannot do without.

A product of [m, k] and [k, n] is 2 m k n. Only matrix products are counted; norms, softmax and sampling are not. The
backward pass of a frozen base with an adapter needs the gradient with respect to activations (as much again as the
forward pass) but not with respect to the base's weights; the adapter's own products are counted three times.
"""

import dataclasses

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import LoraConfig


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one model, perhaps with an adapter.

    Attributes:
        model: its shape.
        lora: the adapter's.
        kept: projections whose outputs are at hand: nothing of them is computed but what goes into the adapter's B.
    """

    model: ModelConfig
    lora: LoraConfig | None = None
    kept: tuple[str, ...] = ()

    def _targets(self) -> dict[str, tuple[int, int]]:
        chosen = () if self.lora is None else self.lora.targets
        return {name: size for name, size in self.model.projections.items() if name in chosen}

    def token(self, backward: bool = False) -> int:
        """One token through all layers, attention to keys apart."""
        base = sum(2 * i * o for name, (i, o) in self.model.projections.items() if name not in self.kept)
        rank = 0 if self.lora is None else self.lora.rank
        adapter = sum(2 * rank * (i + o * (name not in self.kept)) for name, (i, o) in self._targets().items())
        return self.model.num_layers * (base * (2 if backward else 1) + adapter * (3 if backward else 1))

    def attention(self, pairs: int, backward: bool = False) -> int:
        """Scores and mixing for so many (query, key) pairs of positions; the backward pass costs twice as much."""
        forward = 4 * self.model.num_layers * self.model.num_heads * self.model.head_dim * pairs
        return forward * (3 if backward else 1)

    def head(self, columns: int, backward: bool = False) -> int:
        """The output head at one position, over so many columns."""
        adapter = 0
        if self.lora is not None and "head" in self.lora.targets:
            adapter = 2 * self.lora.rank * (self.model.width + columns)
        return 2 * self.model.width * columns * (2 if backward else 1) + adapter * (3 if backward else 1)


@dataclasses.dataclass(frozen=True)
class StepShape:
    """The sizes that a step's cost depends on, in DESIGN's letters.

    Attributes:
        queries, samples: Q, and N fresh samples a query; B = Q N.
        prompt, context, answer: P, C and Y, in tokens.
        few_shot: tokens of demonstrations before the context; cached, so they cost attention only.
        horizon: T.
        allowed: A, columns of the policy's head.
    """

    queries: int
    samples: int
    prompt: int
    context: int
    answer: int
    few_shot: int
    horizon: int
    allowed: int

    @property
    def rows(self) -> int:
        """B."""
        return self.queries * self.samples


def rollout_flops(flops: Flops, shape: StepShape) -> int:
    """Prefill once a query, then T - 1 tokens a row, and T head evaluations."""
    length = shape.horizon - 1
    pairs = shape.queries * _causal(shape.prompt) + shape.rows * (length * shape.prompt + _causal(length))
    tokens = shape.queries * shape.prompt + shape.rows * length
    return tokens * flops.token() + flops.attention(pairs) + shape.rows * shape.horizon * flops.head(shape.allowed)


def score_flops(flops: Flops, shape: StepShape) -> int:
    """The policy's parallel pass, forward and backward."""
    length = shape.horizon - 1
    pairs = shape.queries * _causal(shape.prompt) + shape.rows * (length * shape.prompt + _causal(length))
    tokens = shape.queries * shape.prompt + shape.rows * length
    head = shape.rows * shape.horizon * flops.head(shape.allowed, backward=True)
    return tokens * flops.token(backward=True) + flops.attention(pairs, backward=True) + head


def packed_reward_flops(flops: Flops, shape: StepShape) -> int:
    """Every prefix in one pass: Z once, and Y - 1 tokens a state."""
    length, width = shape.horizon - 1, shape.answer - 1
    before = shape.few_shot + shape.context
    tokens = shape.queries * shape.context + shape.rows * (length + shape.horizon * width)
    pairs = shape.queries * (shape.context * shape.few_shot + _causal(shape.context))
    pairs += shape.rows * (length * before + _causal(length))
    blocks = width * before * shape.horizon + width * _causal(length) + shape.horizon * _causal(width)
    pairs += shape.rows * blocks
    heads = shape.rows * shape.horizon * shape.answer
    return tokens * flops.token() + flops.attention(pairs) + heads * flops.head(flops.model.vocab_size)


def sequential_reward_flops(flops: Flops, shape: StepShape) -> int:
    """A full forward pass per prefix, as the released code does (the few-shot context cached there, too)."""
    total = 0
    for prefix in range(shape.horizon):
        tokens = shape.context + prefix + shape.answer
        pairs = tokens * shape.few_shot + _causal(tokens)
        total += tokens * flops.token() + flops.attention(pairs)
        total += (prefix + shape.answer) * flops.head(flops.model.vocab_size)
    return shape.rows * total


def text_flops(flops: Flops, rows: int, length: int, backward: bool = False, head: bool = True) -> int:
    """Whole texts in one pass, the next of all tokens predicted at every position; `head` False leaves the head out."""
    tokens = rows * length
    logits = tokens * flops.head(flops.model.vocab_size, backward) if head else 0
    return tokens * flops.token(backward) + logits + flops.attention(rows * _causal(length), backward)


def _causal(length: int) -> int:
    """(query, key) pairs of a causal sequence."""
    return length * (length + 1) // 2
