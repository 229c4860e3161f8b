"""A policy that begins with another run's adapter: it is that policy, whatever trains it from there."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from gfn_jax.commands.dry_run import dry_run
from gfn_jax.commands.train import parse
from gfn_jax.models.adapters import save_adapter
from gfn_jax.policy.score import score
from gfn_jax.runs.build import build
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.starting import start_digest
from gfn_jax.training.loop import train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SMALL = (
    "--config.steps=2",
    "--config.save_every=1",
    "--config.optimizer.warmup_steps=1",
    "--config.arithmetic.max_length=17",
    "--config.arithmetic.eval_max_length=17",
    "--config.arithmetic.reward_shots=0",
    "--config.arithmetic.seed_demonstrations=4",
    "--config.evaluation.shots=0",
    "--config.certificate.queries=0",
    "--config.lora.rank=2",
    "--config.lora.alpha=2",
    "--config.sampling.queries=2",
    "--config.sampling.samples=2",
    "--config.replay.samples=1",
    *(f"--config.evaluation.{key}=2" for key in ("every", "questions", "samples", "batch")),
)


def config_of(algorithm="sft", *words):
    small = [*SMALL, "--config.objective.imitation_steps=0"] if algorithm == "gflownet" else SMALL
    return parse(
        ["launch", f"--config={CONFIGS / 'arith.py'}", *small, f"--config.algorithm={algorithm}", *words]
    ).config


def built(config, workdir):
    """The run, which measures nothing on its way."""
    return dataclasses.replace(build(config, workdir).run, evaluations=())


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The workdir of a run on demonstrations, with the adapter that a finished one leaves, and what it ended with."""
    workdir = tmp_path_factory.mktemp("sft")
    config = config_of()
    run = built(config, workdir)
    state = train(run).state
    lora = read_policy_run(config).lora
    save_adapter(workdir / "adapter", run.constants.base.shape, lora, state.trainable.lora, "llama", "tiny-arithmetic")
    return workdir, state


@pytest.mark.parametrize("method", ["gflownet", "ppo"])
def test_the_first_policy_is_the_others_bit_for_bit(first, tmp_path, method):
    """Its adapter, its log q of some demonstrations; the base beside it, reward and reference, stays the base."""
    workdir, state = first
    run = build(config_of(method, f"--config.start={workdir}"), tmp_path).run
    begun, base = run.state.trainable.lora, run.constants.base
    same(begun, state.trainable.lora)
    assert base.adapter is None
    if method != "ppo":
        return
    written = jax.tree.map(lambda x: x[:2], state.memory)
    query = jax.tree.map(lambda x: x[written.example_id], run.constants.queries)
    log_q = [
        np.asarray(score(base.adapted(adapter), query.prompt, written.rollout, run.constants.rules).log_pf)
        for adapter in (begun, state.trainable.lora, None)
    ]
    np.testing.assert_array_equal(log_q[0], log_q[1])
    assert np.abs(log_q[0] - log_q[2]).max() > 1e-5, "and not the base's"


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(first, tmp_path):
    workdir, _ = first
    config = config_of("sft", f"--config.start={workdir / 'adapter'}")
    whole = train(built(config, tmp_path / "whole")).state
    run = built(config, tmp_path / "parts")
    train(dataclasses.replace(run, num_steps=1))
    run.checkpointer.close()
    same(train(built(config, tmp_path / "parts")).state.trainable, whole.trainable)
    assert np.abs(leaves(whole.trainable)[0] - leaves(first[1].trainable)[0]).max() > 0, "it has learnt more"


def test_a_workdir_belongs_to_the_adapter_wherever_it_lies(first, tmp_path):
    workdir, _ = first
    shutil.copytree(workdir / "adapter", tmp_path / "copy")
    run = built(config_of("sft", f"--config.start={workdir}"), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["start"] == start_digest(workdir / "adapter")
    train(dataclasses.replace(run, num_steps=1))
    run.checkpointer.close()
    build(config_of("sft", f"--config.start={tmp_path / 'copy'}"), tmp_path / "run").run.checkpointer.close()
    with pytest.raises(ValueError, match="start is only there"):
        build(config_of("sft"), tmp_path / "run")


def test_a_run_from_the_base_is_described_as_ever():
    assert "start" not in read_policy_run(config_of()).described
    assert read_policy_run(config_of("sft", "--config.start=x")).described["start"] == "x"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--config.lora.rank=3",),
            r"start: the adapter in .* has rank 2, scale 1, targets .*; .* rank 3, scale 0\.66",
        ),
        (("--config.lora.targets=('q',)",), r"targets q k .*; the config's lora has rank 2, scale 1, targets q:"),
        (("--config.lora.alpha=4.0",), r"scale 1, .* scale 2, "),
    ],
)
def test_an_adapter_of_another_kind_is_refused_in_one_line(first, tmp_path, words, line):
    with pytest.raises(ValueError, match=line) as caught:
        build(config_of("sft", f"--config.start={first[0]}", *words), tmp_path)
    assert "\n" not in str(caught.value)


def test_where_there_is_no_adapter_or_no_beginning_it_is_said(tmp_path):
    with pytest.raises(ValueError, match="there is no adapter"):
        build(config_of("sft", f"--config.start={tmp_path / 'nowhere'}"), tmp_path / "run")
    with pytest.raises(ValueError, match="the runs of algorithm 'star' begin with fresh adapters"):
        read_policy_run(config_of("star", "--config.start=x"))
    em = parse(["launch", f"--config={CONFIGS / 'subj.py'}:em", "--config.start=x"]).config
    with pytest.raises(ValueError, match=r"the runs of em\.rounds begin with fresh adapters"):
        read_policy_run(em)


def test_a_dry_run_reads_no_adapter():
    assert dry_run(config_of("sft", "--config.start=nowhere")).startswith("tiny-arithmetic-weak: ")


def test_the_digest_is_of_the_contents(first, tmp_path):
    copy = shutil.copytree(first[0] / "adapter", tmp_path / "copy")
    assert start_digest(copy) == start_digest(first[0] / "adapter")
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert start_digest(copy) != start_digest(first[0] / "adapter")
