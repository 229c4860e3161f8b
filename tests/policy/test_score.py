import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import coarse_products, left_padded, random_ids, random_lora, random_params, tiny

from gfn_jax.environments import NoTool
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.types import Tokens

CONFIG = tiny()
PARAMS = random_params(CONFIG)
LORA = random_lora(CONFIG)
PROMPT = left_padded([[6, 7, 8], [9, 10]])
STOP, LONGEST = 5, 4
ALLOWED = np.array([0, 2, 3, 8])
SOME = make_constraint(23, STOP, LONGEST, min_length=1, token_ids=ALLOWED)
ALL = make_constraint(23, STOP, LONGEST, min_length=1)
LENGTHS = jnp.asarray([4, 1, 3, 2])
COMPLETION = jnp.asarray(ALLOWED)[random_ids(2, 4, 5, vocab=4)]


def forced(constraint):
    return teacher_force(COMPLETION, LENGTHS, Rules(constraint, NoTool()))


@functools.partial(jax.jit, static_argnames=("rate", "remat"))
def jitted(params, prompt, lora, rollout, constraint, key=None, rate=0.0, remat="none"):
    dropout = None if key is None else (key, rate)
    return score(
        LanguageModel(CONFIG, params, lora), prompt, rollout, Rules(constraint, NoTool()), dropout=dropout, remat=remat
    )


scores = functools.partial(jitted, PARAMS, PROMPT)


@pytest.fixture(scope="module")
def whole_logits():
    """[B, T, V] from one unshared pass over prompt and completion, all columns of the head."""
    rows = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), PROMPT)
    rollout = forced(SOME)
    completion = Tokens(ids=rollout.completion, mask=jnp.ones((4, 5), bool))
    tokens = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), rows, completion)
    hidden, _ = decoder.prefill(LanguageModel(CONFIG, PARAMS, LORA), tokens)
    return np.asarray(decoder.logits(decoder.select_head(LanguageModel(CONFIG, PARAMS, LORA)), hidden))[:, 2:7]


@pytest.mark.parametrize("constraint", [SOME, ALL], ids=["columns", "whole head"])
def test_scores_are_the_masked_softmax_of_the_whole_head(constraint, whole_logits):
    ids = [*ALLOWED.tolist(), STOP] if constraint is SOME else range(23)
    rollout = forced(constraint)
    out = scores(LORA, rollout, constraint)
    for row in range(4):
        for t in range(5):
            length = int(LENGTHS[row])
            allowed = [STOP] if t == LONGEST else [i for i in ids if i != STOP or t >= 1]
            logits = whole_logits[row, t].astype(np.float64)
            log_norm = np.log(np.exp(logits[allowed]).sum())
            token = int(rollout.completion[row, t])
            log_pf = logits[token] - log_norm if t <= length else 0.0
            log_pterm = logits[STOP] - log_norm if 1 <= t <= length else 0.0
            np.testing.assert_allclose(out.log_pf[row, t], log_pf, atol=3e-5)
            np.testing.assert_allclose(out.log_pterm[row, t], log_pterm, atol=3e-5)


@pytest.mark.parametrize(
    ("changes", "dtype", "coarse"),
    [
        ({}, jnp.float32, False),
        ({}, jnp.float32, True),
        ({}, jnp.bfloat16, False),
        ({"logit_softcap": 30.0}, jnp.float32, False),
    ],
    ids=["float32", "coarse products", "bfloat16", "soft cap"],
)
def test_the_last_stop_is_certain_and_no_probability_exceeds_one(changes, dtype, coarse, monkeypatch):
    """Exactly: what is picked and what normalises it are the same numbers, whatever the precision of their products."""
    if coarse:
        coarse_products(monkeypatch)
    config = tiny(**changes)
    rollout = teacher_force(COMPLETION, jnp.full(4, LONGEST), Rules(SOME, NoTool()))
    with jax.default_matmul_precision("bfloat16"):
        for scale in (0.4, 4.0):  # the second is nearly certain of every token
            policy = LanguageModel(config, random_params(config, scale=scale, dtype=dtype), LORA)
            out = jax.jit(score)(policy, PROMPT, rollout, Rules(SOME, NoTool()))
            assert out.log_pterm[:, -1].tolist() == out.log_pf[:, -1].tolist() == [0.0] * 4
            assert max(out.log_pf.max(), out.log_pterm.max()) == 0


def test_what_comes_after_the_stop_never_matters():
    rollout = forced(SOME)
    after = jnp.arange(5) > LENGTHS[:, None]
    garbage = rollout.replace(completion=jnp.where(after, random_ids(9, 4, 5), rollout.completion))
    assert (garbage.completion != rollout.completion).any()
    jax.tree.map(np.testing.assert_array_equal, scores(LORA, rollout, SOME), scores(LORA, garbage, SOME))


def test_an_empty_replay_row_scores_zero():
    blank = jax.tree.map(jnp.zeros_like, forced(SOME))
    for value in jax.tree.leaves(scores(LORA, blank, SOME)):
        assert not np.asarray(value).any()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_gradient_is_finite_and_reaches_every_part_of_the_adapter(remat):
    def loss(lora):
        out = scores(lora, forced(SOME), SOME, remat=remat)
        return (out.log_pf * jnp.arange(1, 6)).sum() - out.log_pterm.sum()

    value, gradient = jax.value_and_grad(loss)(LORA)
    assert np.isfinite(value)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 1e-4
    # Columns of the head outside the vocabulary are never computed, so nothing is learnt of them.
    outside = np.setdiff1d(np.arange(23), [*ALLOWED, STOP])
    assert not np.asarray(gradient.head["b"])[:, outside].any()


def test_the_gradient_is_the_slope():
    def loss(lora):
        out = scores(lora, forced(SOME), SOME)
        return (out.log_pf * jnp.arange(1, 6)).sum() - out.log_pterm.sum()

    direction = random_lora(CONFIG, seed=7)
    slope = sum(
        float((g * d).sum())
        for g, d in zip(jax.tree.leaves(jax.grad(loss)(LORA)), jax.tree.leaves(direction), strict=True)
    )

    def moved(h):
        return loss(jax.tree.map(lambda x, d: x + h * d, LORA, direction))

    up, down = moved(1e-3), moved(-1e-3)
    np.testing.assert_allclose((up - down) / 2e-3, slope, rtol=2e-2)


def test_dropout_takes_its_key_and_nothing_else():
    rollout = forced(SOME)
    one = scores(LORA, rollout, SOME, jax.random.key(0), rate=0.3)
    jax.tree.map(np.testing.assert_array_equal, one, scores(LORA, rollout, SOME, jax.random.key(0), rate=0.3))
    assert np.abs(one.log_pf - scores(LORA, rollout, SOME, jax.random.key(1), rate=0.3).log_pf).max() > 1e-3
    assert np.abs(one.log_pf - scores(LORA, rollout, SOME).log_pf).max() > 1e-3


@pytest.mark.parametrize("at_once", [4 * 23, 2 * 4 * 23], ids=["a column at once", "two of five"])
def test_a_few_columns_at_once_are_all_of_them(at_once, monkeypatch):
    """Scores and their gradient; and no array of the program has all columns' logits."""
    rollout = forced(ALL)

    def loss(lora):
        out = score(LanguageModel(CONFIG, PARAMS, lora), PROMPT, rollout, Rules(ALL, NoTool()))
        return (jnp.sin(out.log_pf) + out.log_pterm**2).sum(), out

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (x.aval.size for x in equation.outvars)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from sizes(inner)

    whole = jax.jit(jax.value_and_grad(loss, has_aux=True))(LORA)
    assert 4 * 5 * 23 in sizes(jax.make_jaxpr(jax.grad(lambda lora: loss(lora)[0]))(LORA).jaxpr)
    monkeypatch.setattr(decoder, "LOGITS_AT_ONCE", at_once)
    part = jax.jit(jax.value_and_grad(loss, has_aux=True))(LORA)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()), part, whole)
    assert at_once in sizes(jax.make_jaxpr(jax.grad(lambda lora: loss(lora)[0]))(LORA).jaxpr)
    assert not {4 * 5 * 23, 4 * 6 * 23} & {*sizes(jax.make_jaxpr(jax.grad(lambda lora: loss(lora)[0]))(LORA).jaxpr)}
