"""A learner and its samplers: what is computed is a function of the staleness alone, whoever is faster or killed."""

import dataclasses
import json
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax import launch
from gfn_jax.commands import train as command
from gfn_jax.runs.asynchronous import AsynchronousConfig, Meeting, Samplers, Session, steps_of
from gfn_jax.runs.build import build, build_sampler
from gfn_jax.training import exchange
from gfn_jax.training.loop import train

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "rng.py"
STEPS = 6


def config_of(samplers: int, staleness: int, *words: str):
    words = (
        f"--config={CONFIG}:smoke",
        f"--config.steps={STEPS}",
        "--config.save_every=3",
        "--config.tensorboard=False",
        "--config.certificate.queries=0",
        f"--config.asynchronous.samplers={samplers}",
        f"--config.asynchronous.staleness={staleness}",
        "--config.asynchronous.local=False",
        *words,
    )
    return command.parse(["launch", *words]).config


def trained(workdir, samplers: int, staleness: int, steps: int = STEPS):
    """The state after some steps, from the newest checkpoint on; samplers are threads of this process."""
    config = config_of(samplers, staleness)
    run = build(config, workdir).run
    drawing = [build_sampler(config, workdir, number) for number in range(samplers)]
    threads = [threading.Thread(target=sampler.complete) for sampler in drawing]
    for thread in threads:
        thread.start()
    state = train(dataclasses.replace(run, num_steps=steps)).state
    meeting = Meeting.of(workdir, config.asynchronous)
    if steps < STEPS:  # its samplers wait for more
        meeting.announce(Session("the end", "", 0, 0, ended=True))
    for thread in threads:
        thread.join()
    if steps < STEPS:
        (meeting.folder / "session.json").unlink()
    return jax.device_get(state)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("asynchronous")


@pytest.fixture(scope="module")
def stale(folder):
    return trained(folder / "stale", samplers=2, staleness=2)


def metrics_of(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.pop("kind") == "train"]


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_without_staleness_it_is_the_run_that_samples_for_itself(folder):
    """But for the rounding of two programs where there was one."""
    alone, beside = trained(folder / "alone", 0, 0), trained(folder / "beside", 1, 0)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), alone, beside)
    for one, other in zip(metrics_of(folder / "alone"), metrics_of(folder / "beside"), strict=True):
        assert other["staleness"] == 0
        assert other.keys() - one.keys() == {"staleness", "fresh_ess", "waited"}
        assert {name: other[name] for name in one} == pytest.approx({**one, "seconds": other["seconds"]}, rel=1e-4)


def test_rows_are_as_old_as_is_said_and_no_older(stale, folder):
    found = metrics_of(folder / "stale")
    assert [row["staleness"] for row in found] == [0, 1, 2, 2, 2, 2]
    assert all(0 < row["fresh_ess"] <= 1 for row in found)
    buffer = stale.memory.buffer
    drawn_at = buffer.drawn_at[np.isfinite(buffer.priority)]
    assert set(drawn_at) <= {-1, 0, 1, 2, 3}
    assert drawn_at.max() > 0


def test_a_run_that_is_stopped_goes_on_bit_for_bit(stale, folder):
    trained(folder / "stopped", samplers=2, staleness=2, steps=3)
    assert_same(trained(folder / "stopped", samplers=1, staleness=2), stale)  # by another number of samplers, too
    assert exchange.numbers(folder / "stopped" / "asynchronous" / "rows") == []


def test_policies_that_are_lost_are_replaced_and_that_is_said(folder, caplog):
    trained(folder / "lost", samplers=1, staleness=2, steps=3)
    (folder / "lost" / "asynchronous" / "policies" / "1.npz").unlink()
    with caplog.at_level("WARNING"):
        trained(folder / "lost", samplers=1, staleness=2)
    assert "has no policies of steps 1: rows that they would have drawn are drawn by that of step 3" in caplog.text


def test_whose_steps_are_whose():
    session = Session("s", "d", start=3, steps=9)
    assert [steps_of(session, number, 2) for number in range(2)] == [[4, 6, 8], [5, 7, 9]]
    meeting = Meeting(pathlib.Path(), AsynchronousConfig(2, 3, False))
    assert [meeting.source(step) for step in range(1, 8)] == [0, 0, 0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("samplers", "words", "line"),
    [
        (
            1,
            ["--config.algorithm=rloo"],
            "asynchronous.samplers is 1; algorithm 'rloo' learns from what the policy itself",
        ),
        (-1, [], "asynchronous.samplers"),
    ],
)
def test_what_cannot_be_is_refused(samplers, words, line, tmp_path):
    with pytest.raises(ValueError, match=line):
        build(config_of(samplers, 1, *words), tmp_path)


def test_a_sampler_that_is_not_asked_for_or_of_another_run(folder, stale):
    with pytest.raises(ValueError, match=r"--sampler is 2 and asynchronous\.samplers is 2: they are counted from 0"):
        build_sampler(config_of(2, 2), folder / "stale", 2)
    other = build_sampler(config_of(2, 2, "--config.seed=1"), folder / "stale", 0)
    other.meeting.announce(Session("s", "other", 0, STEPS))
    with pytest.raises(ValueError, match=r"a learner's of config other, and this sampler's is \w+: start it by"):
        other.complete()


def test_a_sampler_that_ends_is_said_in_a_line(tmp_path):
    samplers = Samplers("python -c 'import sys; print(1); sys.exit(\"no luck\")'", 1, tmp_path)
    samplers.start()
    samplers._processes[0].wait()
    with pytest.raises(RuntimeError, match=r"sampler 0 ended with exit code 1 \(no luck\); all it said is in "):
        samplers.check()
    with pytest.raises(ValueError, match="nothing says by which command samplers start"):
        Samplers("", 1, tmp_path)


def test_files_are_whole_or_not_there(tmp_path):
    tree = {"a": jnp.arange(3), "b": (jnp.ones((2, 2)), jnp.asarray([True, False]))}
    assert exchange.take(tmp_path / "1.npz", tree) is None
    exchange.put(tmp_path / "1.npz", tree)
    assert_same(exchange.take(tmp_path / "1.npz", jax.eval_shape(lambda: tree)), tree)
    with pytest.raises(ValueError, match="holds other arrays than this run's"):
        exchange.take(tmp_path / "1.npz", {**tree, "a": jnp.arange(4)})
    (tmp_path / "2.npz").write_bytes((tmp_path / "1.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"2\.npz cannot be read"):
        exchange.take(tmp_path / "2.npz", tree)
    (tmp_path / "3.npz.77.partial").touch()
    assert exchange.numbers(tmp_path) == [1, 2]


@pytest.mark.slow
def test_the_launcher_starts_its_samplers(tmp_path):
    words = [f"--config={CONFIG}:smoke", "--config.certificate.queries=0", f"--workdir={tmp_path}"]
    words += ["--config.asynchronous.samplers=2", "--config.asynchronous.staleness=1"]
    assert launch.main(["launch", *words]) == 0
    said = [(tmp_path / "asynchronous" / f"sampler-{number}.txt").read_text() for number in range(2)]
    assert all("this sampler drew rows for 2 steps" in text for text in said)
