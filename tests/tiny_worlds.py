"""Tiny models, prompts and environments that many tests share: shapes are as small as their point allows."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from gfn_jax.algorithms.gflownet import ALGORITHM as GFLOWNET
from gfn_jax.algorithms.sampling import Sampling
from gfn_jax.environments import Calculator
from gfn_jax.models import decoder, layers, quantize
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import Lora, LoraConfig, init_lora
from gfn_jax.policy.constraint import make_constraint
from gfn_jax.runs.config import read_sampling
from gfn_jax.runs.defaults import policy_config
from gfn_jax.text.wordlevel import build_tokenizer
from gfn_jax.types import Query, Tokens

TARGETS = ("q", "k", "v", "o", "gate", "up", "down", "head")


def tiny(**changes) -> ModelConfig:
    """A two-layer decoder with grouped keys, partly rotated heads and an untied head."""
    settings = {
        "vocab_size": 23,
        "width": 16,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "mlp_width": 24,
        "max_positions": 64,
        "rotary_dim": 4,
    }
    return ModelConfig(**(settings | changes))


def sampling_settings(**changes) -> Sampling:
    """What a step samples, by every run's defaults, with changes; `replay_samples` is the `samples` of `replay`."""
    config = policy_config("any")
    for key, value in changes.items():
        sections = ["replay"] if key.startswith("replay_") else ["sampling", "exploration", "replay"]
        key = key.removeprefix("replay_")
        section = next(config[name] for name in sections if key in config[name])
        with config.unlocked():
            section[key] = value
    return read_sampling(config, GFLOWNET)


def given_other(algorithm, **changes):
    """The same algorithm, some of its ingredients being others."""
    return dataclasses.replace(algorithm, given=dataclasses.replace(algorithm.given, **changes))


def random_params(config: ModelConfig, seed: int = 0, scale: float = 0.4, dtype=jnp.float32):
    """Weights large enough that every part matters, norms and biases included (no compilation)."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        mean = 1.0 - config.norm_offset if name.endswith("scale") else 0.0
        return jnp.asarray(mean + scale * rng.standard_normal(shape.shape), dtype)

    shapes = jax.eval_shape(lambda: decoder.init_params(jax.random.key(0), config))
    return jax.tree_util.tree_map_with_path(leaf, shapes)


def random_lora(config: ModelConfig, seed: int = 1, scale: float = 0.3, targets=TARGETS, dropout: float = 0.0) -> Lora:
    """An adapter that has been trained, so to speak: B is not zero."""
    rng = np.random.default_rng(seed)
    targets = tuple(name for name in targets if name in (*config.projections, "head"))
    lora = LoraConfig(rank=3, alpha=6, targets=targets, dropout=dropout)
    shapes = jax.eval_shape(lambda: init_lora(jax.random.key(0), config, lora))
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), jnp.float32), shapes)


def left_padded(rows: list[list[int]], width: int | None = None) -> Tokens:
    """Rows of ids, padded left; the padding's id is a real token's, so that seeing it would show."""
    width = width or max(map(len, rows))
    ids = [[1] * (width - len(row)) + row for row in rows]
    mask = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    return Tokens(ids=jnp.asarray(ids, jnp.int32), mask=jnp.asarray(mask))


def right_padded(rows: list[list[int]], width: int | None = None) -> Tokens:
    """Rows of ids, padded right."""
    width = width or max(map(len, rows))
    ids = [row + [1] * (width - len(row)) for row in rows]
    mask = [[True] * len(row) + [False] * (width - len(row)) for row in rows]
    return Tokens(ids=jnp.asarray(ids, jnp.int32), mask=jnp.asarray(mask))


def coarse_products(monkeypatch) -> None:
    """Linear maps round what they multiply to bfloat16, as an accelerator's units do at their default precision.

    `jax.default_matmul_precision` asks for that too, but changes nothing on a CPU.
    """

    def coarse(x, kernel, dtype):
        x, kernel = (jax.lax.reduce_precision(a, exponent_bits=8, mantissa_bits=7) for a in (x, kernel))
        return quantize.multiply(x, kernel, dtype)

    monkeypatch.setattr(layers, "multiply", coarse)


def random_ids(seed: int, *shape: int, vocab: int = 23) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, shape), jnp.int32)


def query_of(prompt: Tokens, context: Tokens | None = None, answer: Tokens | None = None) -> Query:
    rows = prompt.ids.shape[0]
    nothing = right_padded([[0]] * rows)
    return Query(
        example_id=jnp.arange(rows),
        prompt=prompt,
        context=prompt if context is None else context,
        answer=nothing if answer is None else answer,
    )


def all_sequences(arity: int, longest: int) -> list[tuple[int, ...]]:
    """Every sequence of up to `longest` tokens, breadth first: the order of `TableReward`'s table."""
    return [s for n in range(longest + 1) for s in itertools.product(range(arity), repeat=n)]


def calculator_world(max_length: int = 9, stop_after_number: bool = True):
    """A calculator over so few tokens that a random policy calls it often; some results take two tokens.

    Returns:
        tokenizer, environment, constraint.
    """
    tokenizer = build_tokenizer()
    environment = Calculator.from_tokenizer(tokenizer, max_abs_value=99, stop_after_number=stop_after_number)
    pieces = [" 1", " 30", " 60", " +", " -", " =", ","]
    constraint = make_constraint(
        len(tokenizer),
        tokenizer.eos_token_id,
        max_length,
        token_ids=np.array(tokenizer.convert_tokens_to_ids(pieces)),
        opens_call=np.asarray(environment.triggers),
        call_room=environment.max_result_tokens,
    )
    return tokenizer, environment, constraint


def check_questions(methods, questions, digits: int = 2) -> None:
    """Every metric that is a mean over questions is the mean of its questions, rounded to so many digits or more."""
    assert "policy" in questions
    for method, found in questions.items():
        assert found
        for name, values in found.items():
            assert abs(np.mean(values) - methods[method][name]) <= 0.51 * 10**-digits, (method, name)


class Guarded(dict):
    """Splits, of which no test one may be read."""

    def __getitem__(self, split):
        assert not split.startswith("test"), f"the split {split} was read"
        return super().__getitem__(split)


def guard_test_splits(monkeypatch, *tasks) -> None:
    """Makes the test questions of tasks unreadable; each has its `splits` as a cached property."""
    for task in tasks:
        splits = task.__dict__["splits"].func
        monkeypatch.setattr(task, "splits", property(lambda self, splits=splits: Guarded(splits(self))))
