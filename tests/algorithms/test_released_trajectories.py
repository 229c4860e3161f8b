"""Teacher-forced trajectories of the released code: scores, rewards, losses and gradients of the adapter.

Tolerances are those of golden/README.md. The main script's loss of rationales is ours with one more state for a row
that stopped of itself, whose potential is the last one's (see tests/objectives/test_golden.py). Deliberate
differences, so left out: next sentences with a minimum length (there the policy may stop earlier at a reward of e^-99,
here it may not) or a vocabulary penalty (there taken off the stop's distribution in the reward too, and a policy may
pay 99 nats for a token that is closed here); and `tools`, whose positions are wrong by golden/README.md.
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
from tiny_worlds import left_padded, query_of, right_padded

from gfn_jax.environments import NoTool
from gfn_jax.models.adapters import load_adapter
from gfn_jax.models.checkpoint import load_model, read_config
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.objectives import subtb
from gfn_jax.objectives.mixture import Objective
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward
from gfn_jax.types import Tokens, Trajectory

OBJECTIVE = Objective((("subtb", 1.0),), "released_mean")
TOKEN, SUM = 5e-5, 2e-4  # nats: one log-probability, and a reward
LOSS = {"rtol": 1e-6, "atol": 1e-3}
GRADIENT = 1e-3  # of the largest entry


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
def golden(golden_folder):
    meta = json.loads((golden_folder / "model_vectors.json").read_text())
    return meta, dict(np.load(golden_folder / "model_vectors.npz"))


@pytest.fixture(scope="module")
def model(golden_folder):
    @functools.cache
    def load(name):
        folder = golden_folder / "models" / name
        config, params = load_model(folder)
        _, lora = load_adapter(folder / "lora", config, read_config(folder)[0], jnp.float32)
        return config, params, lora

    return load


def main_script(rollout, scores, log_reward, temperature):
    """The main script's SubTB."""
    states, actions = rollout.state_mask, rollout.action_mask
    flow = subtb.log_flow(log_reward, scores.log_pterm, temperature, states)
    u = subtb.potential(flow, scores.log_pf, actions, states)
    last, stopped = subtb.terminal_potential(u, states, actions, rollout.token_mask)
    u, states = (jnp.concatenate([x, more[:, None]], axis=1) for x, more in ((u, last), (states, stopped)))
    weighted = subtb.subtb(u, states, jnp.ones(len(u), bool), normalization="released_mean")
    return subtb.ratio(weighted.total, weighted.weight)


def released(rollout, scores, log_reward, temperature):
    """The notebook's SubTB and next sentences'."""
    row_mask = jnp.ones(len(log_reward), bool)
    trajectory = Trajectory(rollout, log_reward)
    measured = OBJECTIVE.measure(trajectory, scores, temperature, row_mask)
    return OBJECTIVE.loss(measured, OBJECTIVE.weights(trajectory, temperature, row_mask))


@functools.partial(jax.jit, static_argnames=("min_length", "differentiate"))
def measure(
    policy,
    query,
    rollout,
    constraint,
    *,
    min_length=0,
    demonstrations=None,
    penalty=None,
    temperature=1.0,
    differentiate=None,
):
    """Scores, rewards, the loss, and the gradient by the adapter of the loss to `differentiate`, with its value."""
    reward = PosteriorReward(demonstrations, penalty, min_length)
    log_reward = reward.log_reward(policy.base, reward.prepare(policy.base), query, rollout)

    def loss(lora, of):
        scores = score(policy.adapted(lora), query.prompt, rollout, Rules(constraint, NoTool()))
        return of(rollout, scores, log_reward, temperature), scores

    value, scores = loss(policy.adapter, released)
    gradient = None
    if differentiate is not None:
        gradient = jax.value_and_grad(lambda lora: loss(lora, differentiate)[0])(policy.adapter)
    return scores, log_reward, value, gradient


def check_gradient(gradient, case, folder, config, tmp_path):
    """The gradients travel as an adapter's weights, so that the reader says which parameter is which."""
    shutil.copy(folder / "lora/adapter_config.json", tmp_path)
    gradients = {key[len("grad/") :]: value for key, value in case.items() if key.startswith("grad/")}
    save_file(gradients, tmp_path / "adapter_model.safetensors")
    _, expected = load_adapter(tmp_path, config, read_config(folder)[0], jnp.float32)
    largest = max(np.abs(value).max() for value in gradients.values())
    assert largest > 1
    shared_a = folder.name == "gpt2"  # c_attn is one A for q, k and v, which are three here
    for target, pair in expected.layers.items():
        ours = gradient.layers[target]
        a = sum(gradient.layers[t]["a"] for t in "qkv") if shared_a and target in "qkv" else ours["a"]
        np.testing.assert_allclose(a, pair["a"], atol=GRADIENT * largest, rtol=0, err_msg=target)
        np.testing.assert_allclose(ours["b"], pair["b"], atol=GRADIENT * largest, rtol=0, err_msg=target)


def of_case(arrays, key):
    """The arrays of one case."""
    return {name.removeprefix(f"{key}/"): value for name, value in arrays.items() if name.startswith(f"{key}/")}


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama"])
def test_next_sentences(name, golden, model, golden_folder, tmp_path):
    meta, arrays = golden
    case = of_case(arrays, f"{name}/ns_traj/plain")
    config, params, lora = model(name)
    stop = meta["sentence_token_id"]
    actions = case["action_seq"]
    # One column more than the released horizon: there the last stop is forced but scored as if it were chosen.
    completion = np.concatenate([actions, np.full((4, 2), stop)], axis=1)
    length = (completion == stop).argmax(1)
    constraint = make_constraint(101, stop, 10)
    rollout = teacher_force(jnp.asarray(completion), jnp.asarray(length), Rules(constraint, NoTool()))
    query = query_of(left_padded([case["prompt"].tolist()] * 4), answer=right_padded([[stop]] * 4))
    scores, log_reward, loss, gradient = measure(
        LanguageModel(config, params, lora), query, rollout, constraint, differentiate=released
    )
    states, tokens = np.asarray(rollout.state_mask)[:, :10], np.asarray(rollout.token_mask)[:, :10]
    for ours, theirs, where, atol in [
        (scores.log_pf, "log_pf_f64", tokens, TOKEN),
        (scores.log_pterm, "log_pterm_f64", states, TOKEN),
        (log_reward, "log_r_f64", states, SUM),
    ]:
        found, expected = np.asarray(ours)[:, :10][where], case[theirs][where]
        np.testing.assert_allclose(found, expected, atol=atol, rtol=0, err_msg=theirs)
    np.testing.assert_allclose(loss, case["loss_f64"], **LOSS)
    check_gradient(gradient[1], case, golden_folder / "models" / name, config, tmp_path)


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
        pytest.param("gptj", "tools_nocache", marks=pytest.mark.slow),
        pytest.param("gptj", "tools_limit2", marks=pytest.mark.slow),
        pytest.param("llama", "plain", marks=pytest.mark.slow),
        pytest.param("llama", "tools_nocache", marks=pytest.mark.slow),
        pytest.param("llama", "tools_limit2", marks=pytest.mark.slow),
    ],
)
def test_rationales(name, case, golden, model, golden_folder, tmp_path):
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
    rollout = teacher_force(
        jnp.asarray(np.pad(completion, padding)), jnp.asarray(length), Rules(constraint, environment)
    )
    demonstrations, penalty = None, jnp.zeros(101)
    if settings["fewshot_prompt"]:
        few = jnp.asarray(arrays[f"{name}/infill_score/fewshot_prompt"])[None]
        demonstrations = Tokens(ids=few, mask=jnp.ones(few.shape, bool))
    if allowed is not None:
        penalty = jnp.where(jnp.isin(jnp.arange(101), allowed), 0.0, -float(settings["vocab_alpha"]))
    answer = right_padded([arrays[f"{key}/solution"].tolist()] * rows)
    temperature = settings["reward_temperature"]
    released_gradient = any(entry.startswith(f"{key}/grad/") for entry in arrays)
    scores, log_reward, loss, gradient = measure(
        LanguageModel(config, params, lora),
        query_of(left_padded([query.tolist()] * rows), answer=answer),
        rollout,
        constraint,
        min_length=settings["min_len"],
        demonstrations=demonstrations,
        penalty=penalty,
        temperature=temperature,
        differentiate=main_script if released_gradient else None,
    )
    actions = np.asarray(rollout.action_mask)
    assert (actions == np.asarray(rollout.state_mask)).all()
    if settings["use_tools"]:
        assert (np.asarray(rollout.token_mask) & ~actions).sum(1).tolist() == [2, 1, 2, 0, 1]
    for ours, theirs, atol in [
        (scores.log_pf, "logpf", TOKEN),
        (scores.log_pterm, "logeosprobs", TOKEN),
        (log_reward / temperature, "logrewards", SUM),
    ]:
        expected = aligned(arrays[f"{key}/{theirs}"], actions)
        np.testing.assert_allclose(np.where(actions, ours, 0), expected, atol=atol, rtol=0, err_msg=theirs)
    np.testing.assert_allclose(loss, arrays[f"{key}/loss_subtb_notebook"], **LOSS)
    if released_gradient:
        value, by_adapter = gradient
        np.testing.assert_allclose(value, arrays[f"{key}/loss_subtb_main"], **LOSS)
        check_gradient(by_adapter, of_case(arrays, key), golden_folder / "models" / name, config, tmp_path)
