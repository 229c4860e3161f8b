"""Logits and prefix rewards of the released code on GPT-2, GPT-J and Llama, within golden/README.md's tolerances.

Every case but the deliberate differences: next sentences with a vocabulary penalty (the released code takes it off the
stop's distribution too, here it acts on Z alone, as in the released rationales) and the `beta` cases (powers of the
parts of a reward, which a product of rewards expresses). Trajectories and gradients: see tests/algorithms.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import left_padded, query_of, right_padded

from gfn_jax.environments import NoTool
from gfn_jax.models.adapters import load_adapter
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward
from gfn_jax.types import Tokens

TOKEN, SUM = 5e-5, 2e-4  # nats: one log-probability, and a reward
FAMILIES = ("gpt2", "gptj", "llama")
BEFORE_MINIMUM = -99.0  # what the released code says of a completion that is too short


@pytest.fixture(scope="module")
def golden(golden_folder):
    meta = json.loads((golden_folder / "model_vectors.json").read_text())
    return meta, dict(np.load(golden_folder / "model_vectors.npz"))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, golden_folder):
    """(name, config, params, adapter)."""
    folder = golden_folder / "models" / request.param
    config, params = load_model(folder)
    return request.param, config, params, load_adapter(folder / "lora", config, request.param)[1]


@pytest.mark.parametrize("adapter", ["base", "lora"])
def test_logits(model, adapter, golden, ours):
    name, config, params, lora = model
    arrays = {key.rpartition("/")[2]: value for key, value in golden[1].items() if key.startswith(f"{name}/logits/")}
    ids = jnp.asarray(arrays["input_ids"])
    logits = ours.logits(config, params, lora if adapter == "lora" else None, ids=ids)
    np.testing.assert_allclose(logits, arrays[f"{adapter}_f32"], atol=TOKEN, rtol=0)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(log_probs, arrays[f"{adapter}_f64_logp"], atol=TOKEN, rtol=0)
    chosen = np.take_along_axis(log_probs[:, :-1], arrays["input_ids"][:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, arrays[f"token_logp_{adapter}_f64"], atol=TOKEN, rtol=0)
    assert np.abs(arrays["base_f32"] - arrays["lora_f32"]).max() > 0.1


@jax.jit
def rewards(model, demonstrations, penalty, query, rollout):
    reward = PosteriorReward(demonstrations, penalty)
    return reward.log_reward(model, reward.prepare(model), query, rollout)


def rollout_of(completion: np.ndarray, stop: int):
    """Completions that end before their first `stop`."""
    padded = np.concatenate([completion, np.full((len(completion), 1), stop)], axis=1)
    constraint = make_constraint(101, stop, completion.shape[1])
    return teacher_force(jnp.asarray(padded), jnp.asarray((padded == stop).argmax(1)), Rules(constraint, NoTool()))


def penalty_of(case, meta) -> jax.Array:
    """Nats taken off each token of Z."""
    if case["mask"] is None:
        return jnp.zeros(101)
    named = np.isin(np.arange(101), meta[f"{case['mask']}_ids"])
    return jnp.where(named == (case["mask"] == "naughty"), -float(case["vocab_alpha"]), 0.0)


@pytest.mark.parametrize(("kind", "count"), [("ns_score", 4), ("infill_score", 7)])
def test_prefix_rewards(model, kind, count, golden):
    name, config, params, _ = model
    meta, arrays = golden
    cases = [case for case in meta["cases"] if case["key"].startswith(f"{name}/{kind}/") and "beta" not in case["key"]]
    if kind == "ns_score":
        cases = [case for case in cases if case["mask"] is None]
    assert len(cases) == count
    group = f"{name}/{kind}"
    for case in cases:
        if kind == "ns_score":
            stop, encoded = meta["sentence_token_id"], arrays[f"{case['key']}/encoded_input"]
            contexts, completion, answer = encoded[:, :6].tolist(), encoded[:, 6:], [stop]
            shots = arrays[f"{group}/cache/prompt_cache_ids"]
        else:
            stop, completion = meta["eos_token_id"], arrays[f"{group}/generated"]
            contexts, answer = [arrays[f"{group}/query"].tolist()] * 5, arrays[f"{group}/solution"].tolist()
            shots = arrays[f"{group}/fewshot_prompt"][None]
        # Always there and perhaps invisible, so that cases share a program.
        demonstrations = Tokens(jnp.asarray(shots), jnp.full(shots.shape, case["prompt_cache"]))
        rollout = rollout_of(completion, stop)
        query = query_of(left_padded(contexts), answer=right_padded([answer] * 5))
        found = np.array(rewards(LanguageModel(config, params), demonstrations, penalty_of(case, meta), query, rollout))
        found[:, : case.get("min_len", 0)] = BEFORE_MINIMUM
        alive = np.asarray(rollout.action_mask)
        assert alive.sum() > 20
        for precision in ("f32", "f64"):
            expected = arrays[f"{case['key']}/reward_{precision}"]
            np.testing.assert_allclose(found[alive], expected[alive], atol=SUM, rtol=0, err_msg=case["key"])
