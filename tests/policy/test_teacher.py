import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import calculator_world, left_padded, random_params, tiny

from gfn_jax.environments import NoTool
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.policy.teacher import teacher_force

PROMPT = left_padded([[6, 7, 8], [9, 10]])


@jax.jit
def sample(model, rules, key):
    half = jnp.full((1024,), 0.5)
    return rollout(model, PROMPT, rules, Behavior(2 * half, half), key)


force = jax.jit(teacher_force)


def agree(sampled, rules):
    """The masks a rollout made are those its own completions are given."""
    length = sampled.token_mask.sum(1)
    after = jnp.arange(rules.constraint.horizon) > length[:, None]
    padded = jnp.where(after, 3, sampled.completion)  # padding with anything
    again = force(padded, length, rules)
    for name in ("completion", "token_mask", "action_mask", "state_mask"):
        np.testing.assert_array_equal(getattr(again, name), getattr(sampled, name), err_msg=name)
    assert not np.asarray(again.log_behavior).any()


@pytest.mark.parametrize("min_length", [0, 2])
def test_masks_without_a_tool_are_those_of_the_rollout(min_length):
    config = tiny()
    rules = Rules(make_constraint(23, 5, 4, min_length=min_length, token_ids=np.arange(4)), NoTool())
    sampled = sample(LanguageModel(config, random_params(config)), rules, jax.random.key(0))
    assert len(set(np.asarray(sampled.token_mask.sum(1)))) == 5 - min_length
    agree(sampled, rules)


@pytest.mark.parametrize("stop_after_number", [False, True])
def test_masks_with_the_calculator_are_those_of_the_rollout(stop_after_number):
    tokenizer, environment, constraint = calculator_world(stop_after_number=stop_after_number)
    config = tiny(vocab_size=len(tokenizer))
    rules = Rules(constraint, environment)
    sampled = sample(LanguageModel(config, random_params(config, scale=0.15)), rules, jax.random.key(0))
    assert (sampled.token_mask & ~sampled.action_mask).any(axis=1).sum() > 3
    agree(sampled, rules)


def test_a_demonstration_in_words_marks_the_tools_part():
    tokenizer, environment, _ = calculator_world()
    constraint = make_constraint(len(tokenizer), tokenizer.eos_token_id, 12, call_room=2)
    texts = [" 60 + 30 = 90, 1 - 30 = -29", " 1 + 30"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    completion = jnp.asarray([row + [0] * (13 - len(row)) for row in ids])
    out = force(completion, jnp.asarray([len(row) for row in ids]), Rules(constraint, environment))
    chosen = [
        "".join(tokenizer.convert_ids_to_tokens(np.asarray(out.completion[row])[np.asarray(mask)]))
        for row, mask in enumerate(out.action_mask)
    ]
    assert chosen == [" 60 + 30 =, 1 - 30 =<eos>", " 1 + 30<eos>"]
    assert np.nonzero(out.state_mask[1])[0].tolist() == [1, 3]  # behind a number only


@pytest.mark.parametrize(
    ("text", "length", "possible"),
    [
        (" 60 + 30 = 90", None, True),
        (" 60 + 30 = 91", None, False),  # the tool says 90
        (" 60 + 30 = 9", None, False),  # the tool has not finished
        (" 60 + 30 = 90, 1", None, True),
        (" 60 + 30 = 90,", None, False),  # may not stop behind a comma
        (" 60 + 2", None, False),  # not in the vocabulary
        (" 1 + 1 + 1 + 1 + 1 - 1", None, False),  # longer than the horizon
        (" 1 + 1 - 1 + 1 + 1", None, True),
        (" 1 + 1 - 1 + 1 =", None, False),  # a call with no room left for its answer
        ("", 0, False),  # may not stop before a number
    ],
)
def test_what_could_not_have_been_written_has_no_masks(text, length, possible):
    tokenizer, environment, constraint = calculator_world(max_length=9)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    completion = jnp.asarray([(ids + [0] * 10)[:10]])
    out = force(completion, jnp.asarray([len(ids) if length is None else length]), Rules(constraint, environment))
    masks = [out.token_mask, out.action_mask, out.state_mask]
    assert [bool(mask.any()) for mask in masks] == [possible] * 3
