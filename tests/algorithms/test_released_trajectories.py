"""Teacher-forced trajectories of the released code: scores, rewards, losses and gradients of the adapter.

Deliberate differences, so left out: next sentences with a minimum length (there the policy may stop earlier at a
reward of e^-99, here it may not) or a vocabulary penalty (there taken off the stop's distribution in the reward too,
and a policy may pay 99 nats for a token that is closed here); the `main` variant of the rationales' loss, which
counts the stop twice; and `tools`, whose positions are wrong by golden/README.md.
"""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from safetensors.numpy import save_file
from worlds import left_padded, query_of, right_padded

from gfn_jax.environments import NoTool
from gfn_jax.models.adapters import load_adapter
from gfn_jax.models.checkpoint import load_model, read_config
from gfn_jax.objectives.mixture import Objective
from gfn_jax.policy.constraint import make_constraint
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward
from gfn_jax.types import Tokens, Trajectory

OBJECTIVE = Objective((("subtb", 1.0),), "released_mean")


@struct.dataclass
class Written(NoTool):
    """A tool that writes given tokens at given columns: [B, T], -1 where the policy decides."""

    tokens: jax.Array

    def init(self, rows):
        return jnp.zeros(rows, jnp.int32)

    def step(self, state, token):
        return state + 1

    def forced(self, state):
        return self.tokens[jnp.arange(len(state)), state]

    def may_stop(self, state):
        return self.forced(state) < 0


@pytest.fixture(scope="module")
def golden(shared):
    meta = json.loads((shared / "golden/model_vectors.json").read_text())
    return meta, dict(np.load(shared / "golden/model_vectors.npz"))


@pytest.fixture(scope="module")
def model(shared):
    @functools.cache
    def load(name):
        folder = shared / "golden/models" / name
        config, params = load_model(folder)
        _, lora = load_adapter(folder / "lora", config, read_config(folder)[0], jnp.float32)
        return config, params, lora

    return load


@functools.partial(jax.jit, static_argnames=("config", "min_length", "differentiate"))
def measure(
    config,
    params,
    lora,
    query,
    rollout,
    constraint,
    *,
    min_length=0,
    demonstrations=None,
    penalty=None,
    temperature=1.0,
    differentiate=False,
):
    """Scores, rewards, the loss, and its gradient by the adapter."""
    reward = PosteriorReward(config, demonstrations, penalty, min_length)
    log_reward = reward.log_reward(params, reward.prepare(params), query, rollout)

    def loss(lora):
        scores = score(config, params, lora, query.prompt, rollout, constraint)
        row_mask = jnp.ones(len(log_reward), bool)
        measured = OBJECTIVE.measure(Trajectory(rollout, log_reward), scores, temperature, row_mask)
        return OBJECTIVE.loss(measured, OBJECTIVE.weights(rollout, row_mask)), scores

    value, scores = loss(lora)
    gradient = jax.grad(loss, has_aux=True)(lora)[0] if differentiate else None
    return scores, log_reward, value, gradient


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama"])
def test_next_sentences(name, golden, model, shared, tmp_path):
    meta, arrays = golden
    case = {
        key.rpartition("ns_traj/plain/")[2]: value for key, value in arrays.items() if f"{name}/ns_traj/plain/" in key
    }
    config, params, lora = model(name)
    stop = meta["sentence_token_id"]
    actions = case["action_seq"]
    # One column more than the released horizon: there the last stop is forced but scored as if it were chosen.
    completion = np.concatenate([actions, np.full((4, 2), stop)], axis=1)
    length = (completion == stop).argmax(1)
    constraint = make_constraint(101, stop, 10)
    rollout = teacher_force(jnp.asarray(completion), jnp.asarray(length), constraint, NoTool())
    query = query_of(left_padded([case["prompt"].tolist()] * 4), answer=right_padded([[stop]] * 4))
    scores, log_reward, loss, gradient = measure(config, params, lora, query, rollout, constraint, differentiate=True)
    states, tokens = np.asarray(rollout.state_mask)[:, :10], np.asarray(rollout.token_mask)[:, :10]
    for ours, theirs, where in [
        (scores.log_pf, "log_pf_f64", tokens),
        (scores.log_pterm, "log_pterm_f64", states),
        (log_reward, "log_r_f64", states),
    ]:
        np.testing.assert_allclose(np.asarray(ours)[:, :10][where], case[theirs][where], atol=2e-4, err_msg=theirs)
    np.testing.assert_allclose(loss, case["loss_f64"], rtol=1e-4)

    # The gradients travel as an adapter's weights, so that the reader says which parameter is which.
    source = shared / "golden/models" / name
    shutil.copy(source / "lora/adapter_config.json", tmp_path)
    gradients = {key[len("grad/") :]: value for key, value in case.items() if key.startswith("grad/")}
    save_file(gradients, tmp_path / "adapter_model.safetensors")
    _, expected = load_adapter(tmp_path, config, read_config(source)[0], jnp.float32)
    largest = max(np.abs(value).max() for value in gradients.values())
    shared_a = name == "gpt2"  # c_attn is one A for q, k and v, which are three here
    for target, pair in expected.layers.items():
        ours = gradient.layers[target]
        a = sum(gradient.layers[t]["a"] for t in "qkv") if shared_a and target in "qkv" else ours["a"]
        np.testing.assert_allclose(a, pair["a"], atol=1e-3 * largest, err_msg=target)
        np.testing.assert_allclose(ours["b"], pair["b"], atol=1e-3 * largest, err_msg=target)
    assert largest > 1


def aligned(expected: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """The released columns, which skip what the tool wrote, spread to where the policy decided."""
    out = np.zeros(actions.shape)
    for row, where in enumerate(actions):
        out[row, where] = expected[row, : where.sum()]
    return out


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("gpt2", "plain"),
        ("gpt2", "nice_prompt"),
        ("gpt2", "tools_nocache"),
        ("gpt2", "tools_limit2"),
        ("gptj", "tools_limit2"),
        ("llama", "tools_limit2"),
    ],
)
def test_rationales(name, case, golden, model):
    meta, arrays = golden
    key = f"{name}/infill_traj/{case}"
    settings = next(entry for entry in meta["cases"] if entry["key"] == key)
    config, params, lora = model(name)
    chosen, query = arrays[f"{key}/action_seq"], arrays[f"{key}/query"]
    text = arrays[f"{key}/final_state_seen_by_reward"][:, len(query) :]
    rows = len(text)
    # What stands in the text and was not chosen is the tool's: both are read from the left.
    written = np.full((rows, text.shape[1] + 1), -1)
    for row in range(rows):
        remaining = chosen[row].tolist()
        for column, token in enumerate(text[row]):
            if remaining and remaining[0] == token:
                remaining.pop(0)
            elif token != 0:
                written[row, column] = token
    completion = np.concatenate([text, np.zeros((rows, 1), int)], axis=1)
    length = (completion == 0).argmax(1)
    allowed = np.array(meta["nice_ids"]) if settings["mask"] == "nice" else None
    max_length = settings["max_len"] if case == "nice_prompt" else completion.shape[1]
    constraint = make_constraint(101, 0, max_length, token_ids=allowed)
    padding = [(0, 0), (0, max_length + 1 - completion.shape[1])]
    environment = Written(jnp.asarray(np.pad(written, padding, constant_values=-1)))
    rollout = teacher_force(jnp.asarray(np.pad(completion, padding)), jnp.asarray(length), constraint, environment)
    demonstrations, penalty = None, jnp.zeros(101)
    if settings["fewshot_prompt"]:
        few = jnp.asarray(arrays[f"{name}/infill_score/fewshot_prompt"])[None]
        demonstrations = Tokens(ids=few, mask=jnp.ones(few.shape, bool))
    if allowed is not None:
        penalty = jnp.where(jnp.isin(jnp.arange(101), allowed), 0.0, -float(settings["vocab_alpha"]))
    answer = right_padded([arrays[f"{key}/solution"].tolist()] * rows)
    temperature = settings["reward_temperature"]
    scores, log_reward, loss, _ = measure(
        config,
        params,
        lora,
        query_of(left_padded([query.tolist()] * rows), answer=answer),
        rollout,
        constraint,
        min_length=settings["min_len"],
        demonstrations=demonstrations,
        penalty=penalty,
        temperature=temperature,
    )
    actions = np.asarray(rollout.action_mask)
    assert (actions == np.asarray(rollout.state_mask)).all()
    if settings["use_tools"]:
        assert (np.asarray(rollout.token_mask) & ~actions).sum(1).tolist() == [2, 1, 2, 0, 1]
    for ours, theirs in [
        (scores.log_pf, "logpf"),
        (scores.log_pterm, "logeosprobs"),
        (log_reward / temperature, "logrewards"),
    ]:
        expected = aligned(arrays[f"{key}/{theirs}"], actions)
        np.testing.assert_allclose(np.where(actions, ours, 0), expected, atol=3e-4, err_msg=theirs)
    np.testing.assert_allclose(loss, arrays[f"{key}/loss_subtb_notebook"], rtol=1e-4)
