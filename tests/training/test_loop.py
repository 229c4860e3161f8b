import dataclasses
import functools
import json
import logging
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import init_state, make_run, step_fn

from gfn_jax.errors import EvaluationFailed, TrainingDiverged, TrainingStopped
from gfn_jax.training.loop import Evaluation, Trained, complete, train

TOY = pathlib.Path(__file__).with_name("toy.py")


def records(workdir: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_bits(left: Trained, right: Trained) -> None:
    for a, b in zip(jax.tree.leaves(left.state), jax.tree.leaves(right.state), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_four_steps_are_two_and_a_resume_and_two(tmp_path):
    whole = train(make_run(tmp_path / "whole", 4))
    train(make_run(tmp_path / "parts", 2))
    again = train(make_run(tmp_path / "parts", 4))
    assert_same_bits(whole, again)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_resume_in_another_process_after_a_kill(tmp_path):
    whole = train(make_run(tmp_path / "whole", 4))
    # Step 3 is logged when the process dies, and saved or not.
    child = subprocess.Popen([sys.executable, TOY, tmp_path / "parts", "40", "0.1"], stderr=subprocess.PIPE, text=True)
    for line in child.stderr:
        if line.startswith("step 3 evaluated"):
            break
    child.kill()
    child.wait()
    resumed = make_run(tmp_path / "parts", 4)
    assert resumed.checkpointer.latest_step in (1, 2, 3)
    assert_same_bits(whole, train(resumed))
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_a_finished_run_only_returns_its_state(tmp_path):
    first = train(make_run(tmp_path, 2))
    again = train(make_run(tmp_path, 2))
    assert_same_bits(first, again)
    assert again.compile_seconds == 0
    assert again.seconds == pytest.approx(first.seconds)
    with pytest.raises(ValueError, match="holds step 2, more than the 1 steps"):
        train(make_run(tmp_path, 1))


def test_a_state_that_is_donated_while_it_is_saved_is_saved_as_it_was(tmp_path):
    """Saving goes on in the background while the next steps overwrite their input in place."""

    @functools.partial(jax.jit, donate_argnums=0)
    def tall(state, constants):
        return state.replace(trainable={"w": state.trainable["w"] + 1}), {"loss": jnp.zeros(())}

    state = init_state().replace(trainable={"w": jnp.zeros((1 << 20,))})
    run = make_run(tmp_path, 6, state=state, step_fn=tall, evaluations=(), save_every=3)
    train(run)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    template = init_state().replace(trainable={"w": jnp.zeros((1 << 20,))})
    restored = make_run(tmp_path, 6).checkpointer.restore(template)
    assert restored.step == 3
    assert set(np.unique(restored.state.trainable["w"])) == {3.0}


@pytest.mark.parametrize(("fault", "what"), [("nan_at", "the loss is nan"), ("inf_at", "the state is not finite")])
def test_divergence_names_the_last_good_checkpoint_and_saves_nothing(tmp_path, fault, what):
    settings = {fault: 4, "evaluations": (), "save_every": 2}
    with pytest.raises(TrainingDiverged, match=rf"{what} at step 4; the last good checkpoint is step 2"):
        train(make_run(tmp_path, 8, **settings))
    assert make_run(tmp_path, 8).checkpointer.latest_step == 2
    if fault == "nan_at":
        assert records(tmp_path)[-1] == {"step": 4, "kind": "train", "loss": None, "coverage": 0.5}


def test_divergence_before_the_first_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match="at step 1; there is no checkpoint yet"):
        train(make_run(tmp_path, 8, nan_at=1))


def with_metrics(**metrics):
    def step(state, constants):
        state, own = step_fn(state, constants)
        return state, own | {name: jnp.asarray(value) for name, value in metrics.items()}

    return jax.jit(step, donate_argnums=0)


@pytest.mark.parametrize(
    ("nan_at", "base", "finite_rewards", "advice"),
    [
        (3, 1.0, 1.0, "try a lower learning rate or a smaller clip_norm, with"),
        (1, 1.0, 1.0, "nothing had been learnt by then, so the learning rate is not the cause: look at lora.alpha, "),
        (3, 1.0, 0.75, "the reward is a finite number for 75 % of the prefixes only"),
        (3, np.nan, 0.0, "base is not finite, and no training will change that"),
    ],
)
def test_divergence_blames_its_cause(tmp_path, nan_at, base, finite_rewards, advice):
    run = make_run(tmp_path, 8, nan_at=nan_at, evaluations=(), step_fn=with_metrics(finite_rewards=finite_rewards))
    run = dataclasses.replace(run, constants=run.constants | {"base": jnp.full((3,), base)})
    with pytest.raises(TrainingDiverged, match=f"the loss is nan at step {nan_at}; .*{advice}"):
        train(run)


def out_of_memory(state, step):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")


@pytest.mark.parametrize(
    ("evaluate", "reason"),
    [
        (out_of_memory, "JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory"),
        (lambda state, step: {"accuracy": float("nan")}, "ValueError: accuracy is nan"),
    ],
)
def test_an_evaluation_that_fails_saves_first(tmp_path, evaluate, reason):
    run = make_run(tmp_path, 4, evaluations=(Evaluation(3, evaluate),), save_every=9)
    with pytest.raises(EvaluationFailed, match=rf"^the evaluation of step 3 failed \({reason}\); the step is saved in"):
        train(run)
    assert run.checkpointer.steps == [3]
    assert_same_bits(train(make_run(tmp_path, 4)), train(make_run(tmp_path / "whole", 4)))


def test_a_report_that_fails_can_be_asked_for_again(tmp_path):
    def fail(trained):
        raise KeyError("accuracy")

    run = make_run(tmp_path, 2, finish=fail)
    with pytest.raises(EvaluationFailed, match=r"the report failed \(KeyError: 'accuracy'\); all steps are saved in"):
        complete(run)
    assert complete(make_run(tmp_path, 2)) == "finished after 2 steps"


@pytest.mark.parametrize("place", ["last evaluation", "report"])
def test_sigterm_at_the_end_is_not_waited_out(tmp_path, place):
    """Neither one that comes while the last step is measured nor one during the report, which may take minutes."""
    went_on = []

    def report(trained):
        if place == "report":
            os.kill(os.getpid(), signal.SIGTERM)
        went_on.append("to the end")
        return ""

    def evaluate(state, step):
        if place == "last evaluation":
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    before = signal.getsignal(signal.SIGTERM)
    run = make_run(tmp_path, 2, finish=report, evaluations=(Evaluation(2, evaluate),))
    with pytest.raises(TrainingStopped, match=r"stopped (at|after) step 2 of 2.* saved in .*; run the same") as stop:
        complete(run)
    assert (stop.value.exit_code, went_on) == (143, [])
    assert run.checkpointer.latest_step == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_workdir_deleted_during_a_run_ends_it(tmp_path):
    def delete(state, step):
        shutil.rmtree(tmp_path / "run")
        return {}

    run = make_run(tmp_path / "run", 99, evaluations=(Evaluation(2, delete),))
    with pytest.raises(FileNotFoundError, match=r"run/checkpoints was deleted while the run went on"):
        train(run)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    command = [sys.executable, TOY, tmp_path / "parts", "6", "0.1"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in child.stderr:
        if line.startswith("step 2 evaluated"):
            child.send_signal(signal.SIGINT)
            break
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "stopped: stopped at step 3 of 6, saved in" in out
    assert "run the same command to go on" in out
    resumed = make_run(tmp_path / "parts", 6)
    assert resumed.checkpointer.latest_step == 3
    assert_same_bits(train(resumed), train(make_run(tmp_path / "whole", 6)))
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_sigterm_saves_and_its_handler_is_given_back(tmp_path):
    def kill(state, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    before = signal.getsignal(signal.SIGTERM)
    # Step 5 is due for nothing: it is saved because the run ends there.
    run = make_run(tmp_path, 7, evaluations=(Evaluation(4, kill),), save_every=2)
    with pytest.raises(TrainingStopped, match="stopped at step 5 of 7") as stop:
        train(run)
    assert stop.value.exit_code == 143
    assert run.checkpointer.latest_step == 5
    assert signal.getsignal(signal.SIGTERM) == before
    train(make_run(tmp_path, 7))
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_step_that_moves_data_to_the_device_is_refused(tmp_path):
    def leaky(state, constants):
        return step_fn(state, constants | {"nan_at": np.int32(-1)})

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(make_run(tmp_path, 2, step_fn=leaky))


def test_evaluations_keep_their_own_pace_and_see_the_last_step(tmp_path):
    seen = {"often": [], "seldom": []}

    def watch(name):
        def evaluate(state, step):
            assert int(state.step) == step
            seen[name].append(step)
            return {name: float(step)}

        return evaluate

    evaluations = (Evaluation(2, watch("often")), Evaluation(3, watch("seldom")))
    train(make_run(tmp_path, 7, evaluations=evaluations))
    assert seen == {"often": [2, 4, 6, 7], "seldom": [3, 6, 7]}


def test_the_best_checkpoint_is_kept_beside_the_latest(tmp_path):
    values = [0.1, 0.9, 0.3, 0.4, 0.2, 0.2, 0.1, 0.1]
    evaluations = (Evaluation(1, lambda state, step: {"accuracy": values[step - 1]}),)
    run = make_run(tmp_path, 8, evaluations=evaluations, best_metric="accuracy")
    train(run)
    assert run.checkpointer.steps == [2, 7, 8]


def test_metrics_are_read_while_the_next_step_runs(tmp_path):
    order = []

    class Watch:
        def resume(self, step):
            pass

        def write(self, step, kind, values):
            order.append(f"read {step}")

        def close(self):
            pass

    def noted(state, constants):
        order.append("start")
        return step_fn(state, constants)

    train(make_run(tmp_path, 4, step_fn=noted, writers=(Watch(),), evaluations=(), save_every=9))
    assert order == ["start", "start", "read 1", "start", "read 2", "start", "read 3", "read 4"]


def test_progress_says_where_the_run_is(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="gfn_jax"):
        train(make_run(tmp_path, 4))
    lines = caplog.messages
    assert any(line.startswith("first step took") for line in lines)
    assert any(line.startswith("step 2 evaluated: height") for line in lines)
    progress = next(line for line in lines if line.startswith("step 3/4  "))
    for word in ("steps/s", "samples/s", "ETA", "loss", "coverage", "height"):
        assert word in progress


@pytest.mark.parametrize("name", ["num_steps", "samples_per_step", "log_every", "save_every"])
def test_counts_must_be_positive(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        make_run(tmp_path, **{"num_steps": 1, name: 0})


@pytest.mark.slow
def test_two_processes_agree_where_to_stop_and_one_goes_on(tmp_path):
    """SIGTERM comes to one process; both save the same step. What they saved, a single process reads."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    command = [sys.executable, TOY, tmp_path / "parts", "20", "0.2"]
    children = [
        subprocess.Popen(
            command,
            env=os.environ
            | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for line in children[0].stderr:
        if line.startswith("step 2 evaluated"):
            children[1].send_signal(signal.SIGTERM)
            break
    words = [child.communicate(timeout=200)[0].splitlines()[-1] for child in children]
    assert [child.returncode for child in children] == [143, 143]
    assert words[0] == words[1]
    resumed = make_run(tmp_path / "parts", 20)
    step = resumed.checkpointer.latest_step
    assert words[0].startswith(f"stopped: stopped at step {step} of 20")
    assert_same_bits(train(resumed), train(make_run(tmp_path / "whole", 20)))
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
