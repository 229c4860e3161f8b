"""How a run is put together, where no other test looks."""

import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import all_sequences, left_padded, query_of, sampling_settings, tiny

from gfn_jax import replay
from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.gflownet import GFlowNet
from gfn_jax.algorithms.on_task import Memory
from gfn_jax.commands import train
from gfn_jax.environments import NoTool
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.rewards import TableReward
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.policy import Parts, alarm_of, describe_progress, initial, policy_parts, prompt_copies, rewarded_seeds
from gfn_jax.text.batching import make_seeds
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "arith.py"


def test_seeds_are_rewarded_in_parts_as_they_are_at_once():
    """Five demonstrations, three at a time (the last part is filled up) and all together."""
    folder = model_folder("tiny-arithmetic")
    base = LanguageModel(*load_model(folder))
    buffers = []
    for samples in (3, 8):
        words = ["--config.arithmetic.seed_demonstrations=5", "--config.sampling.queries=1"]
        words += [f"--config.sampling.samples={samples}", "--config.replay.samples=1"]
        config = read_policy_run(train.parse(["launch", f"--config={CONFIG}", *words]).config)
        mesh = meshes.abstract_mesh(meshes.MeshConfig(1, 1, 1))
        parts = policy_parts(config, base.shape, load_tokenizer(folder), mesh)
        buffers.append(jax.device_get(initial(config, parts, base)[1].memory.buffer))
    parted, whole = buffers
    filled = np.asarray(whole.filled)
    assert filled.any(1).tolist() == [True] * 5 + [False] * (len(filled) - 5)
    np.testing.assert_array_equal(np.asarray(parted.filled), filled)
    np.testing.assert_allclose(parted.log_reward, whole.log_reward, atol=1e-4)
    rewards = whole.log_reward[filled]
    assert len(np.unique(np.round(rewards, 3), axis=0)) == 5, "every demonstration has its own"


class Letters:
    """A task of three letters, of which a completion has one or two."""

    def decode(self, ids):
        return "".join("abcde"[i] for i in ids)


def seeded(completions):
    """The queries that a buffer of their own seeds has something for, one seed a query."""
    table = jnp.zeros(len(all_sequences(3, 2)))
    settings = sampling_settings(queries=1, samples=len(completions), replay_samples=0)
    reward = TableReward(table, 3)
    algorithm = GFlowNet(Ingredients(reward, settings, None))
    constants = Constants(
        base=LanguageModel(tiny(), None),
        prepared=table,
        queries=query_of(left_padded([[1]] * len(completions))),
        query_log_weight=None,
        rules=Rules(make_constraint(23, 5, 2, min_length=1, token_ids=np.arange(3)), NoTool()),
        root=None,
    )
    seeds = make_seeds(range(len(completions)), completions, 5, 2)
    trajectory = rewarded_seeds(
        Parts(Letters(), constants.queries, "gflownet", settings, reward, algorithm, None, None), constants, seeds
    )
    memory = algorithm.remember(Memory(replay.init(len(completions), 2, 3)), seeds.example_id, trajectory)
    return np.flatnonzero(np.asarray(memory.buffer.filled).any(1)).tolist()


def test_seeds_that_the_rules_refuse_are_counted_and_said(caplog):
    """A letter that may not be written, and too few of them."""
    assert seeded([[0, 1], [2], [2, 1], [0]]) == [0, 1, 2, 3]
    assert not caplog.records
    assert seeded([[0, 1], [0, 4], [2], []]) == [0, 2]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "2 of 4 seeds are refused" in record.getMessage()
    assert "the first is 'ae', query 1" in record.getMessage()


def test_a_run_whose_seeds_are_all_refused_is_refused():
    with pytest.raises(ValueError, match=r"4 of 4 seeds are refused: .*the first is 'd', query 0"):
        seeded([[3], [0, 4], [], [4, 4]])


@pytest.mark.parametrize(
    ("queries", "data", "fsdp", "copies"), [(1, 1, 1, 1), (1, 8, 1, 8), (1, 2, 2, 4), (16, 8, 1, 1), (12, 4, 2, 2)]
)
def test_devices_share_the_samples_of_few_queries(queries, data, fsdp, copies):
    """`configs/rng.py` has one query; no mesh that its 192 samples divide over is refused."""
    settings = sampling_settings(queries=queries, samples=192, replay_samples=96)
    assert prompt_copies(settings, meshes.abstract_mesh(meshes.MeshConfig(data, fsdp, 2))) == copies


@pytest.mark.parametrize("samples", [(12, 4), (8, 1), (10, 6)])
def test_samples_that_cannot_be_shared_are_named(samples):
    settings = sampling_settings(queries=1, samples=samples[0], replay_samples=samples[1])
    with pytest.raises(ValueError, match=r"8 devices \(data=4 x fsdp=2\).* cannot share the \d+ samples of a query"):
        prompt_copies(settings, meshes.abstract_mesh(meshes.MeshConfig(4, 2, 1)))


def test_a_line_of_progress_says_when_replay_is_stale():
    """Under the share that the config asks for, and not where nothing is replayed."""
    evaluator = types.SimpleNamespace(describe=lambda evaluated: "")

    def line(alarm, **metrics):
        return describe_progress(evaluator, alarm, {"loss": 1.0, **metrics}, {})

    assert line(0.3, replay_ess=0.12).endswith("STALE REPLAY: effective sample size 12% < 30%")
    assert "STALE" not in line(0.1, replay_ess=0.12) + line(0.3)
    assert alarm_of(sampling_settings(replay_ess_alarm=0.3)) == 0.3
    assert alarm_of(dataclasses.replace(sampling_settings(), replay=None)) == 0.0
