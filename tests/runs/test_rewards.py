"""The `reward` section of a config, on the main task."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tokenizers import EVERY
from tiny_worlds import tiny
from tokenizers.processors import TemplateProcessing

from gfn_jax.commands.train import parse
from gfn_jax.errors import UserCodeError
from gfn_jax.models.checkpoint import read_config
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward, Product
from gfn_jax.runs.build import build
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.rewards import HostReward, RewardConfig, build_reward
from gfn_jax.runs.tasks import make_task
from gfn_jax.sections import imported
from gfn_jax.tasks.continuation import Continuation, ContinuationConfig
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training.loop import train
from gfn_jax.worlds.stories_corpus import build_tokenizer as stories_tokenizer

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
PLAIN = RewardConfig(1.0, 0.0, 0.0, (), (), 20.0, None, 1.0, None)


def config_of(*overrides):
    return parse(["launch", f"--config={CONFIGS / 'arith.py'}", *overrides]).config


@pytest.fixture(scope="module")
def world():
    folder = model_folder("tiny-arithmetic")
    tokenizer, model = load_tokenizer(folder), read_config(folder)[1]
    return make_task(read_policy_run(config_of()), tokenizer, model), model, tokenizer


def long_answers(prompts, completions):
    """A user's function: a nat for every equals sign."""
    assert all("Question" in prompt for prompt in prompts)
    return [float(text.count("=")) for text in completions]


def parity(strings):
    """A user's automaton: an odd number of commas costs a nat."""
    following = np.zeros((2, len(strings)), int)
    following[1] = 1
    following[:, [i for i, text in enumerate(strings) if text.strip() == ","]] = [[1], [0]]
    return following, [0.0, -1.0]


def test_nothing_asked_for_is_the_tasks_own_reward(world):
    assert isinstance(build_reward(PLAIN, *world), PosteriorReward)


def test_every_factor_is_built(world):
    asked = dataclasses.replace(
        PLAIN, task=0.8, unconditional=-0.5, reverse=0.1, required=("answer",), automaton=f"{__name__}:parity"
    )
    reward = build_reward(asked, *world)
    assert isinstance(reward, Product)
    assert reward.weights == (0.8, -0.5, 0.1, 1.0, 1.0)


def test_a_reward_without_factors_is_refused(world):
    with pytest.raises(ValueError, match="no factor"):
        build_reward(dataclasses.replace(PLAIN, task=0.0), *world)


def adding_bos(tokenizer):
    """The tokenizer with a begin-of-text that it puts before every text, as Llama's and Gemma's do."""
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


TOKENIZERS = {"adds it": lambda: adding_bos(stories_tokenizer()), "has none": stories_tokenizer}


@pytest.mark.parametrize("begin_of_text", [False, True])
@pytest.mark.parametrize("name", [*TOKENIZERS, *EVERY])
def test_begin_of_text_stands_once_and_first_in_whatever_is_scored(name, begin_of_text, tokenizer_named):
    """Forwards, backwards and without X: [begin] X Z, [begin] Z X, [begin] Z; the begin is never after Z."""
    tokenizer = TOKENIZERS[name]() if name in TOKENIZERS else tokenizer_named(name)
    settings = ContinuationConfig(None, False, 20, 4, begin_of_text, ".", 1, 3, ())
    task = Continuation(settings, tokenizer, len(tokenizer))
    if (name, begin_of_text) == ("has none", True):
        with pytest.raises(ValueError, match="no such token"):
            task.queries("train")
        return
    model = tiny(vocab_size=len(tokenizer), max_positions=512)
    asked = dataclasses.replace(PLAIN, task=1.0, unconditional=1.0, reverse=1.0)
    _, free, backwards = build_reward(asked, task, model, tokenizer).factors
    query = task.queries("train")
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    begins = begin_of_text or name == "adds it"
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in task.splits["train"]]
    assert real(query.context) == [[begin] * begins + text for text in texts]
    assert real(free.arrange(query).context) == real(backwards.arrange(query).context) == [[begin]] * len(texts)
    assert real(backwards.arrange(query).answer) == texts
    assert real(free.arrange(query).answer) == real(query.answer)


def real(tokens):
    """The ids that are no padding, of every row."""
    rows = zip(np.asarray(tokens.ids), np.asarray(tokens.mask), strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


@pytest.mark.parametrize("path", ["json", "json:", "json:nothing", "no_such_module:f"])
def test_what_cannot_be_imported_is_said(path):
    with pytest.raises(ValueError, match=f"{path}'"):
        imported(path)


def test_the_host_asks_once_a_text_and_only_where_z_may_end(world):
    task, _, _ = world
    asked = []

    def function(prompts, completions):
        asked.extend(zip(prompts, completions, strict=True))
        return np.arange(len(completions)) + 1.0

    ids, lengths = np.asarray(task.seeds().completion)[:2], np.asarray(task.seeds().length)[:2]
    ids, lengths = ids[[0, 1, 0]], lengths[[0, 1, 0]]
    rollout = teacher_force(jnp.asarray(ids), jnp.asarray(lengths), Rules(task.constraint(), task.environment))
    out = HostReward(function, ["first", "second"], task.decode)(np.asarray([0, 1, 0]), rollout)
    states = np.asarray(rollout.state_mask)
    assert (out[~states] == 0).all()
    assert len(asked) == len(set(asked)) == states[:2].sum()
    np.testing.assert_array_equal(out[0], out[2])
    t = int(np.argwhere(states[1])[-1, 0])
    assert asked[int(out[1, t]) - 1] == ("second", task.decode(ids[1, :t].tolist()))


@pytest.mark.parametrize(
    "value", [[1.0], [float("nan")] * 2, [0.0, float("-inf")], [[0.0, 0.0]], None, ["a", "b"], {"a": 1}, [1e300, 0.0]]
)
def test_a_function_that_answers_nonsense_is_refused(value, world):
    task, _, _ = world
    rollout = teacher_force(jnp.asarray([[5, 6, 7]]), jnp.asarray([2]), Rules(task.constraint(), task.environment))
    rollout = dataclasses.replace(rollout, state_mask=jnp.asarray([[True, True, False]]))
    with pytest.raises(ValueError, match="2 finite numbers"):
        HostReward(lambda prompts, texts: value, ["X"], task.decode)(np.zeros(1, int), rollout)


def test_a_function_that_raises_is_named(world):
    task, _, _ = world
    rollout = teacher_force(jnp.asarray([[5, 6, 7]]), jnp.asarray([2]), Rules(task.constraint(), task.environment))
    rollout = dataclasses.replace(rollout, state_mask=jnp.asarray([[True, True, False]]))
    reward = HostReward(lambda prompts, texts: {}["x"], ["X"], task.decode, "reward.function mine:f")
    with pytest.raises(UserCodeError, match=r"reward\.function mine:f raised KeyError: 'x' \(--debug"):
        reward(np.zeros(1, int), rollout)


def test_a_function_is_not_asked_where_no_state_may_stop(world):
    task, _, _ = world
    rollout = teacher_force(jnp.asarray([[5, 6, 7]]), jnp.asarray([2]), Rules(task.constraint(), task.environment))
    rollout = dataclasses.replace(rollout, state_mask=jnp.zeros((1, 3), bool))
    out = HostReward(lambda prompts, texts: 1 / 0, ["X"], task.decode)(np.zeros(1, int), rollout)
    np.testing.assert_array_equal(out, np.zeros((1, 3)))


@pytest.mark.slow
def test_a_run_with_a_function_learns_from_it(tmp_path):
    """The stored rewards are the base's plus the function's; the run trains, is saved and goes on."""
    small = [
        "--config.steps=2",
        "--config.save_every=1",
        "--config.arithmetic.max_length=17",
        "--config.arithmetic.seed_demonstrations=3",
        "--config.optimizer.warmup_steps=1",
        "--config.objective.imitation_steps=0",
        "--config.certificate.queries=0",
        *(
            f"--config.{key}={n}"
            for key, n in (("sampling.queries", 4), ("sampling.samples", 4), ("replay.samples", 2))
        ),
        *(
            f"--config.evaluation.{key}=2"
            for key in ("every", "questions", "samples", "test_questions", "diverse_questions", "batch")
        ),
    ]
    plain = config_of(*small)
    hosted = config_of(*small, f"--config.reward.function={__name__}:long_answers")
    stored = {}
    for name, config in (("plain", plain), ("hosted", hosted)):
        run = build(config, tmp_path / name).run
        stored[name] = jax.device_get(run.state.memory.buffer)  # before its memory is given to the next state
    assert train(run).steps == 2
    counts = stored["hosted"].log_reward - stored["plain"].log_reward
    filled = np.asarray(stored["plain"].filled)
    assert set(np.unique(np.round(counts[filled], 3))) >= {0.0, 1.0, 2.0}


def test_a_function_in_one_process_only(tmp_path, monkeypatch):
    """With several it is refused when the run is built, before the base is read."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("gfn_jax.runs.weights.load_model", lambda *args: pytest.fail("the base was read"))
    config = config_of(f"--config.reward.function={__name__}:long_answers", "--config.mesh.data=1")
    with pytest.raises(ValueError, match=r"reward\.function runs in one process only") as caught:
        build(config, tmp_path)
    assert "\n" not in str(caught.value)
