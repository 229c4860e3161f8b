import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from tiny_worlds import all_sequences, calculator_world, left_padded, random_lora, random_params, tiny

from gfn_jax.environments import NoTool
from gfn_jax.models import layers
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy import rollout as rollouts
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.rollout import Behavior, choose, rollout
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force

ARITY, STOP, LONGEST = 3, 5, 3
CONFIG = tiny()
PARAMS = random_params(CONFIG, scale=0.3)
LORA = random_lora(CONFIG)
PROMPT = left_padded([[6, 7, 8], [9, 10]])
WORLD = make_constraint(23, STOP, LONGEST, token_ids=np.arange(ARITY))
ROWS = 8192


@functools.partial(jax.jit, static_argnames=("config",))
def sample(params, lora, prompt, constraint, environment, key, temperature, mix, config=CONFIG):
    return rollout(
        LanguageModel(config, params, lora), prompt, Rules(constraint, environment), Behavior(temperature, mix), key
    )


@functools.partial(jax.jit, static_argnames=("config",))
def scores(params, lora, prompt, sampled, constraint, config=CONFIG):
    return score(LanguageModel(config, params, lora), prompt, sampled, Rules(constraint, NoTool()))


def in_world(key=0, temperature=1.0, mix=0.0, rows=ROWS):
    full = jnp.full((rows,), 1.0)
    return sample(PARAMS, LORA, PROMPT, WORLD, NoTool(), jax.random.key(key), temperature * full, mix * full)


def counts(sampled):
    """How often each sequence was drawn, for each of the two prompts."""
    index = {sequence: i for i, sequence in enumerate(all_sequences(ARITY, LONGEST))}
    out = np.zeros((2, len(index)))
    lengths = np.asarray(sampled.token_mask.sum(1))
    for row, tokens in enumerate(np.asarray(sampled.completion).tolist()):
        out[row * 2 // len(lengths), index[tuple(tokens[: lengths[row]])]] += 1
    return out


@pytest.fixture(scope="module")
def exact():
    """log q of every sequence by `score`, for each of the two prompts."""
    sequences = all_sequences(ARITY, LONGEST)
    tokens = jnp.asarray([[*s, *[STOP] * (LONGEST + 1 - len(s))] for s in sequences] * 2)
    lengths = jnp.asarray([len(s) for s in sequences] * 2)
    forced = teacher_force(tokens, lengths, Rules(WORLD, NoTool()))
    return np.asarray(scores(PARAMS, LORA, PROMPT, forced, WORLD).log_pf.sum(1)).reshape(2, -1)


@pytest.fixture(scope="module")
def on_policy():
    return in_world()


def chi_square(observed, probability):
    """The statistic over cells that are expected 5 times at least, the rest pooled; and its degrees."""
    expected = probability * observed.sum()
    rare = expected < 5
    cells = [np.append(x[~rare], x[rare].sum()) for x in (observed, expected)]
    return ((cells[0] - cells[1]) ** 2 / np.maximum(cells[1], 1e-9)).sum(), len(cells[0]) - 1


def test_samples_follow_the_exact_distribution(on_policy, exact):
    np.testing.assert_allclose(np.exp(exact).sum(1), 1.0, atol=1e-5)
    for observed, log_q in zip(counts(on_policy), exact, strict=True):
        statistic, degrees = chi_square(observed, np.exp(log_q))
        assert degrees > 10
        assert statistic < degrees + 4 * np.sqrt(2 * degrees)  # about one seed in ten thousand goes beyond
    first, second = np.exp(exact)
    assert np.abs(first - second).sum() > 0.1  # the two prompts differ, so a mix-up of rows would show


def test_log_behavior_is_what_score_says(on_policy):
    scored = scores(PARAMS, LORA, PROMPT, on_policy, WORLD)
    np.testing.assert_allclose(scored.log_pf, on_policy.log_behavior, atol=2e-5)
    assert (np.asarray(on_policy.log_behavior)[np.asarray(on_policy.action_mask)] < 0).sum() > ROWS


def test_a_merged_adapter_draws_the_same(monkeypatch):
    policy = LanguageModel(CONFIG, PARAMS, LORA)
    key, behavior, asked = jax.random.key(3), Behavior.at(1.0, 64), []

    def drawn(answer):
        monkeypatch.setattr(rollouts, "merging_pays", lambda params, lora, tokens: asked.append(tokens) or answer)
        return jax.jit(lambda policy: rollout(policy, PROMPT, Rules(WORLD, NoTool()), behavior, key))(policy)

    merged, beside = drawn(True), drawn(False)
    assert asked == [64 * LONGEST] * 2
    np.testing.assert_array_equal(merged.completion, beside.completion)
    np.testing.assert_allclose(merged.log_behavior, beside.log_behavior, atol=1e-5)
    scored = scores(PARAMS, LORA, PROMPT, merged, WORLD)
    np.testing.assert_allclose(scored.log_pf, merged.log_behavior, atol=1e-5)


def test_tempered_and_mixed_samples_follow_the_log_probabilities_they_report():
    sampled = in_world(key=1, temperature=0.6, mix=0.3)
    total = np.asarray(sampled.log_behavior.sum(1))
    observed = counts(sampled)
    index = {s: i for i, s in enumerate(all_sequences(ARITY, LONGEST))}
    probability = np.zeros_like(observed)
    for row, tokens in enumerate(np.asarray(sampled.completion).tolist()):
        probability[row * 2 // ROWS, index[tuple(tokens[: tokens.index(STOP)])]] = np.exp(total[row])
    np.testing.assert_allclose(probability.sum(1), 1.0, atol=1e-2)  # nearly every sequence was drawn
    for drawn, chance in zip(observed, probability, strict=True):
        statistic, degrees = chi_square(drawn, chance)
        assert statistic < degrees + 4 * np.sqrt(2 * degrees)


def test_choices_follow_the_formula_and_report_it():
    """(1 - e) softmax(logits / temperature) + e uniform, over the allowed tokens."""
    rng, repeats = np.random.default_rng(0), 4000
    logits, allowed = rng.standard_normal((7, 5)).astype(np.float32), rng.random((7, 5)) < 0.7
    allowed[:, 0] = True
    temperature = np.array([0.3, 1.0, 2.0, 1.0, 0.5, 1.0, 0.0], np.float32)
    mix = np.array([0.0, 0.0, 0.0, 1.0, 0.4, 0.01, 0.5], np.float32)
    rows = [jnp.repeat(x, repeats, axis=0) for x in (logits, allowed, temperature, mix)]
    drawn, log_behavior = (np.asarray(x).reshape(7, repeats) for x in choose(jax.random.key(0), *rows))
    weight = np.where(allowed, np.exp(logits / np.maximum(temperature, 1e-2)[:, None]), 0)
    policy = weight / weight.sum(1, keepdims=True)
    uniform = allowed / allowed.sum(1, keepdims=True)
    expected = (1 - mix[:, None]) * policy + mix[:, None] * uniform
    for row in range(6):
        np.testing.assert_allclose(np.exp(log_behavior[row]), expected[row][drawn[row]], rtol=1e-4)
        shares = np.bincount(drawn[row], minlength=5) / repeats
        assert (np.abs(shares - expected[row]) < 4.5 * np.sqrt(expected[row] / repeats) + 1e-9).all()
    assert (drawn[6] == np.where(allowed, logits, -np.inf)[6].argmax()).all()
    assert not log_behavior[6].any()


@pytest.mark.parametrize("mix", [0.0, 0.3])
def test_the_only_token_allowed_is_certain_at_any_temperature(mix):
    logits = 5 * jax.random.normal(jax.random.key(0), (200, 7))
    allowed = jnp.broadcast_to(jnp.arange(7) == 3, logits.shape)
    drawn, log_behavior = jax.jit(choose)(
        jax.random.key(1), logits, allowed, jnp.linspace(0.3, 2.0, 200), jnp.full(200, mix)
    )
    assert (drawn == 3).all()
    np.testing.assert_array_equal(log_behavior, np.zeros(200))


def test_one_program_serves_every_temperature_mix_and_key():
    before = sample._cache_size()
    for key, temperature, mix in [(0, 1.0, 0.0), (1, 0.5, 0.1), (2, 2.0, 1.0), (3, 0.0, 0.0)]:
        in_world(key, temperature, mix, rows=16)
    assert sample._cache_size() == before + 1


def test_temperature_zero_is_greedy(exact):
    sampled = in_world(temperature=0.0, rows=16)
    tokens = np.asarray(sampled.completion)
    assert (tokens[:8] == tokens[0]).all()
    assert (tokens[8:] == tokens[8]).all()
    assert not np.asarray(sampled.log_behavior).any()
    scored = scores(PARAMS, LORA, PROMPT, sampled, WORLD)
    chosen = np.asarray(scored.log_pf)
    for rival in (0, 1, 2, STOP):  # no other token would have been likelier, in any state
        for t in range(LONGEST):
            other = tokens.copy()
            other[:, t] = rival
            swapped = sampled.replace(completion=jnp.asarray(other))
            rivals = np.asarray(scores(PARAMS, LORA, PROMPT, swapped, WORLD).log_pf)[:, t]
            assert (rivals <= chosen[:, t] + 1e-6)[np.asarray(sampled.action_mask)[:, t]].all()


def test_mix_one_is_uniform_over_the_allowed_tokens():
    sampled = in_world(key=2, mix=1.0)
    expected = np.where(sampled.action_mask, np.array([-np.log(4)] * 3 + [0.0]), 0.0)
    np.testing.assert_allclose(sampled.log_behavior, expected, atol=1e-6)
    first = np.bincount(np.asarray(sampled.completion[:, 0]), minlength=6)
    assert first[[3, 4]].sum() == 0
    assert np.abs(first[[0, 1, 2, STOP]] - ROWS / 4).max() < 5 * np.sqrt(ROWS * 3 / 16)


def test_rows_keep_their_own_temperature_and_mix():
    temperature = jnp.where(jnp.arange(16) % 2, 0.0, 1.0)
    mix = jnp.where(jnp.arange(16) % 4 == 2, 1.0, 0.0)
    sampled = sample(PARAMS, LORA, PROMPT, WORLD, NoTool(), jax.random.key(4), temperature, mix)
    greedy = in_world(temperature=0.0, rows=16)
    np.testing.assert_array_equal(sampled.completion[1::2], greedy.completion[1::2])
    np.testing.assert_allclose(sampled.log_behavior[2::4, 0], -np.log(4), atol=1e-6)
    assert np.abs(np.asarray(sampled.log_behavior[::4, 0]) + np.log(4)).min() > 1e-3


def check_masks(sampled, min_length, stop=STOP):
    """What holds of every rollout without a tool."""
    names = ("completion", "token_mask", "action_mask", "state_mask")
    tokens, token_mask, action_mask, state_mask = (np.asarray(getattr(sampled, name)) for name in names)
    lengths, columns = token_mask.sum(1), np.arange(tokens.shape[1])
    np.testing.assert_array_equal(token_mask, columns < lengths[:, None])
    np.testing.assert_array_equal(action_mask, columns <= lengths[:, None])
    np.testing.assert_array_equal(state_mask, action_mask & (columns >= min_length))
    assert (tokens[~token_mask] == stop).all()
    assert (tokens[token_mask] != stop).all()
    return lengths


def test_masks_end_with_the_stop(on_policy):
    lengths = check_masks(on_policy, 0)
    assert set(lengths) == {0, 1, 2, 3}


def test_lengths_hold_in_every_sample():
    constraint = make_constraint(23, STOP, 6, min_length=2, token_ids=np.arange(ARITY))
    full = jnp.ones(512)
    sampled = sample(PARAMS, LORA, PROMPT, constraint, NoTool(), jax.random.key(0), full, 0.5 * full)
    assert set(check_masks(sampled, 2)) == {2, 3, 4, 5, 6}
    scored = scores(PARAMS, LORA, PROMPT, sampled, constraint)
    assert np.isfinite(scored.log_pf).all()
    assert (np.asarray(scored.log_pf) <= 1e-5).all()  # rounding: the logit and the normaliser are two products


@struct.dataclass
class Counting(NoTool):
    """No tool, but every token that is read leaves a mark outside."""

    def step(self, state, token):
        jax.debug.callback(lambda: MARKS.append(1))
        return state


MARKS: list[int] = []


def test_columns_after_the_last_stop_are_skipped_and_nothing_else_changes():
    """Rows 0-3 are the same with longer rows beside them: draws do not depend on the rows that follow."""
    constraint = make_constraint(23, STOP, 9, token_ids=np.arange(ARITY))
    out = []
    for rows in (4, 64):
        MARKS.clear()
        ones = jnp.ones(rows)
        prompt = jax.tree.map(lambda x: x[:1], PROMPT)
        out.append(sample(PARAMS, LORA, prompt, constraint, Counting(), jax.random.key(0), ones, 0.5 * ones))
        jax.effects_barrier()
        lengths = check_masks(out[-1], 0)
        assert len(MARKS) == lengths.max() + 1
    few, many = out
    assert few.token_mask.sum(1).max() < many.token_mask.sum(1).max()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:4], atol=2e-6), few, many)


CALC_CONFIG = tiny(vocab_size=len(calculator_world()[0]))


@pytest.fixture(scope="module")
def with_calculator():
    tokenizer, environment, constraint = calculator_world()
    params = random_params(CALC_CONFIG, seed=3, scale=0.15)
    lora = random_lora(CALC_CONFIG, seed=4)
    full = jnp.ones(2048)
    sampled = sample(
        params, lora, PROMPT, constraint, environment, jax.random.key(0), full, 0 * full, config=CALC_CONFIG
    )
    scored = scores(params, lora, PROMPT, sampled, constraint, config=CALC_CONFIG)
    return tokenizer, sampled, scored


def last_result(text: str, bound: int = 99) -> str:
    """What the calculator writes after `text`, by regular expressions over the whole text."""
    expression = re.split(r"[=,]", text[:-1])[-1]
    integer = r" *(-? *[0-9]+) *"
    if not re.fullmatch(rf"{integer}(?:[+-]{integer})+", expression):
        return ""
    first = re.match(integer, expression)
    terms = [("+", first[1]), *re.findall(rf"([+-]){integer}", expression[first.end() :])]
    a, b = (int(digits.replace(" ", "")) for _, digits in terms[-2:])
    value = a + b if terms[-1][0] == "+" else a - b
    return f" {value}" if max(abs(a), abs(b), abs(value)) <= bound else ""


def test_the_tool_writes_its_result_and_the_policy_did_not_choose_it(with_calculator):
    tokenizer, sampled, scored = with_calculator
    forced = np.asarray(sampled.token_mask & ~sampled.action_mask)
    starts = forced & ~np.pad(forced, ((0, 0), (1, 0)))[:, :-1]
    assert starts.sum() > 20
    assert (forced[:, 1:] & forced[:, :-1]).any()  # a result of two tokens
    for row, column in zip(*np.nonzero(starts), strict=True):
        tokens = np.asarray(sampled.completion[row]).tolist()
        end = column + int(np.argmin(forced[row, column:]))
        assert not forced[row, -1]  # it always fits
        written = tokenizer.decode(tokens[column:end])
        assert written == last_result(tokenizer.decode(tokens[:column])), tokenizer.decode(tokens)
    assert not (forced & np.asarray(sampled.state_mask)).any()
    assert not np.asarray(sampled.log_behavior)[forced].any()
    assert not np.asarray(scored.log_pf)[forced].any()
    assert not np.asarray(scored.log_pterm)[forced].any()


def test_score_agrees_with_rollout_around_the_tool(with_calculator):
    _, sampled, scored = with_calculator
    np.testing.assert_allclose(scored.log_pf, sampled.log_behavior, atol=3e-5)
    stops = np.asarray(sampled.action_mask & ~sampled.token_mask)
    assert (stops.sum(1) == 1).all()
    np.testing.assert_array_equal(np.asarray(scored.log_pf)[stops], np.asarray(scored.log_pterm)[stops])


def test_a_state_behind_a_number_may_stop_and_no_other(with_calculator):
    tokenizer, sampled, _ = with_calculator
    strings = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    digit = np.array([text[-1:].isdigit() for text in strings])[np.asarray(sampled.completion)]
    behind = np.pad(digit, ((0, 0), (1, 0)))[:, :-1]
    last = np.arange(behind.shape[1]) == behind.shape[1] - 1
    expected = np.asarray(sampled.action_mask) & (behind | last)
    np.testing.assert_array_equal(sampled.state_mask, expected)


@pytest.mark.parametrize("at_once", [32, 2], ids=["read whole", "in pieces"])
def test_a_column_changes_the_cache_in_place(at_once, monkeypatch):
    """No step of the loop copies the cache, nor passes it through a conditional, which would copy it on either side."""
    monkeypatch.setattr(layers, "columns_at_once", lambda: at_once)
    rows, full = 8, jnp.ones(8)
    arguments = (PARAMS, LORA, PROMPT, WORLD, NoTool(), jax.random.key(0), full, 0 * full)
    compiled = jax.jit(lambda *given: sample.__wrapped__(*given)).lower(*arguments).compile().as_text()
    loops = compiled[: compiled.index("\nENTRY")]
    shape = f"f32[{CONFIG.num_layers},{rows},{CONFIG.num_kv_heads},{LONGEST},{CONFIG.head_dim}]"
    assert f"{shape}{{4,3,2,1,0}} dynamic-update-slice(" in loops, "the cache is recognised by its shape"
    made = re.findall(
        re.escape(shape) + r"\{[0-9,]*\}[^=\n]*? (copy|broadcast|conditional|select|concatenate)\(", loops
    )
    assert set(made) <= {"broadcast"}
    assert len(made) <= 2  # the empty cache's, outlined
