"""STaR: what a round learns from, where it starts, and that rounds go on where they were stopped."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_files import write_questions
from tiny_worlds import check_questions, guard_test_splits

from gfn_jax.commands.train import parse
from gfn_jax.errors import TrainingStopped
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.runs import rounds, star
from gfn_jax.runs.build import build
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.saved import read_run, restore_adapter
from gfn_jax.runs.tasks import make_task
from gfn_jax.runs.weights import load_base
from gfn_jax.tasks.arithmetic import Arithmetic
from gfn_jax.tasks.task import Graded, Hinted
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import read_facts
from gfn_jax.training.loop import train

TINY = {
    "algorithm": "star",
    "steps": 4,
    "save_every": 2,
    "star.rounds": 2,
    "star.samples": 1,
    "star.growth": 1.5,
    "optimizer.warmup_steps": 1,
    "arithmetic.max_length": 17,
    "arithmetic.eval_max_length": 24,
    "sampling.queries": 4,
    "sampling.samples": 4,
    "sampling.micro_batches": 2,
    "evaluation.every": 6,
    "evaluation.questions": 2,
    "evaluation.samples": 2,
    "evaluation.test_questions": 2,
    "evaluation.diverse_questions": 0,
    "evaluation.batch": 2,
    "evaluation.shots": 0,
    "certificate.queries": 0,
}


def config_of(data, config="arith", **changes):
    words = [f"--config.{name}={value}" for name, value in {**TINY, **changes}.items()]
    return parse(["launch", f"--config=configs/{config}.py", *words, f"--config.data.path={data}"]).config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """68 training questions: 47 demonstrations' and 21 others."""
    folder = tmp_path_factory.mktemp("data")
    write_questions(folder, count=50, known=7)
    path = folder / "1digit_34_op+-_hw.json"
    path.write_text(json.dumps(json.loads(path.read_text())[-21:]))
    return folder


@pytest.fixture(scope="module")
def task(data):
    config = read_policy_run(config_of(data))
    folder = model_folder(config.model.path)
    base = load_base(folder, "float32", meshes.make_mesh(config.mesh))
    return make_task(config, load_tokenizer(folder), base.shape)


@dataclasses.dataclass
class Watched:
    """Two rounds in one go: the runs, what they started from, and the last words."""

    workdir: object
    runs: list
    states: list
    page: str


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    watched, workdir = Watched(tmp_path_factory.mktemp("whole"), [], [], ""), None
    workdir = watched.workdir

    def completed(run):
        watched.runs.append(run)
        watched.states.append(jax.device_get(run.state))
        return rounds.completed(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(star, "completed", completed)
        watched.page = build(config_of(data), workdir, "the command").complete()
    return watched


@pytest.mark.slow
def test_rounds_leave_a_table_their_results_and_the_last_adapter(whole):
    results = json.loads((whole.workdir / "results.json").read_text())
    facts = [results[name] for name in ("task", "method", "seed", "command")]
    assert facts == ["arithmetic", "star", 0, "the command"]
    last = json.loads((whole.workdir / "round_2" / "results.json").read_text())
    assert (last["method"], last["steps"]) == ("star", 6)
    assert results["policy"] == last["policy"]
    assert set(results["policy"]) & set(results["base_0shot"])
    for number, steps in ((1, 4), (2, 6)):
        row = results[f"round_{number}"]
        assert row["steps"] == steps
        assert row["rationales"] >= row["queries_solved"] > 0
        assert 0 <= row["accuracy_3"] <= 100
        assert f"round {number}: {row['rationales']} rationales" in whole.page
    assert str(whole.workdir / "results.json") in whole.page
    check_questions(results, json.loads((whole.workdir / "questions.json").read_text()))
    ours, own = (folder / "samples.jsonl" for folder in (whole.workdir, whole.workdir / "round_2"))
    assert ours.read_text() == own.read_text() != ""
    spent = [star.sampling_of(whole.workdir / f"round_{number}") for number in (1, 2)]
    assert results["budget"]["generated_tokens"] == sum(each["generated_tokens"] for each in spent) > 0
    assert last["budget"]["generated_tokens"] == 0, "supervised fine-tuning samples nothing"
    assert results["budget"]["training_flops"] > last["budget"]["training_flops"] > 0
    for name in ("adapter_config.json", "README.md", "adapter_model.safetensors"):
        ours, rounds_own = (folder / "adapter" / name for folder in (whole.workdir, whole.workdir / "round_2"))
        assert ours.read_bytes() == rounds_own.read_bytes()


@pytest.mark.slow
def test_all_that_is_kept_is_right_and_hints_are_for_the_others(whole, task):
    for number in (1, 2):
        _, kept = star.read_rationales(whole.workdir / f"round_{number}")
        assert all(task.grade("train", each.example, task.decode(each.ids)) for each in kept)
        assert all(each.text == task.decode(each.ids) for each in kept)
        solved = {each.example for each in kept if not each.hinted}
        assert not solved & {each.example for each in kept if each.hinted}
        if number == 1:
            assert any(each.hinted for each in kept), "what the others show shall be seen"


@pytest.mark.slow
def test_the_training_prompts_hold_neither_hints_nor_demonstrations(whole, task):
    for number, run in enumerate(whole.runs, 1):
        plain = task.queries("train")
        jax.tree.map(np.testing.assert_array_equal, run.constants.queries, plain)
        prompts = [
            task.decode(ids[mask].tolist())
            for ids, mask in zip(*map(np.asarray, (plain.prompt.ids, plain.prompt.mask)))
        ]
        assert all(prompt.count("Question") == 1 and "= ?" in prompt for prompt in prompts)
        _, kept = star.read_rationales(whole.workdir / f"round_{number}")
        memory = whole.states[number - 1].memory
        assert memory.example_id.tolist() == [each.example for each in kept]
        lengths = memory.rollout.token_mask.sum(1)
        rows = [row[:length].tolist() for row, length in zip(memory.rollout.completion, lengths)]
        assert rows == [each.ids for each in kept]


@pytest.mark.slow
def test_every_round_starts_from_the_base_with_a_fresh_adapter(whole):
    first, second = whole.states
    jax.tree.map(np.testing.assert_array_equal, first.trainable, second.trainable)
    jax.tree.map(np.testing.assert_array_equal, first.opt_state, second.opt_state)
    assert not any(np.abs(part["b"]).max() for part in second.trainable.lora.layers.values())
    assert [run.num_steps for run in whole.runs] == [4, 6]
    config = json.loads((whole.workdir / "round_2" / "config.json").read_text())
    assert config["algorithm"] == "star"


@pytest.mark.slow
def test_a_round_samples_from_the_policy_of_the_one_before(whole, task, data):
    """Anybody finds the second round's rationales again, from the first one's checkpoint."""
    config = read_policy_run(config_of(data))
    base = load_base(model_folder(config.model.path), "float32", meshes.make_mesh(config.mesh))
    saved = read_run(whole.workdir / "round_1")
    policy = base.adapted(restore_adapter(saved, 4, base.shape))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), star.RATIONALES), 2)
    kept, spent = star.sample_rationales(task, config, policy, key)
    own = star.sampling_of(whole.workdir / "round_2")
    assert own | {"seconds": 0} == spent | {"seconds": 0}
    assert kept == star.read_rationales(whole.workdir / "round_2")[1]


@pytest.mark.slow
def test_rounds_killed_in_the_second_go_on_bit_for_bit(whole, data, tmp_path, monkeypatch):
    seen = []

    def killed(run):
        seen.append(run.workdir.name)
        if run.workdir.name == "round_1":
            return rounds.completed(run)
        train(dataclasses.replace(run, num_steps=2))
        run.checkpointer.close()
        raise TrainingStopped("killed", exit_code=1)

    monkeypatch.setattr(star, "completed", killed)
    with pytest.raises(TrainingStopped):
        build(config_of(data), tmp_path, "the command").complete()
    assert seen == ["round_1", "round_2"]
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(star, "completed", rounds.completed)
    monkeypatch.setattr(star, "sample_completions", lambda *args: pytest.fail("what was sampled is sampled again"))
    program = build(config_of(data), tmp_path, "the command")
    assert program.first == 2
    again = json.loads((tmp_path / "round_1" / "results.json").read_text())
    page = program.complete()
    assert json.loads((tmp_path / "round_1" / "results.json").read_text()) == again, "a finished round is not repeated"
    assert page.replace(str(tmp_path), "") == whole.page.replace(str(whole.workdir), "")
    for number, step in ((1, 4), (2, 6)):
        ours, theirs = (folder / f"round_{number}" for folder in (tmp_path, whole.workdir))
        assert (ours / "rationales.jsonl").read_bytes() == (theirs / "rationales.jsonl").read_bytes()
        one, other = (read_facts(folder / "checkpoints" / str(step))["digests"] for folder in (ours, theirs))
        assert one == other
    results = [json.loads((folder / "results.json").read_text()) for folder in (tmp_path, whole.workdir)]
    for found in results:
        del found["seconds"], found["budget"]["seconds"]
    assert results[0] == results[1]


@pytest.mark.slow
def test_rounds_that_report_on_validation_read_no_test_question(data, tmp_path, monkeypatch):
    guard_test_splits(monkeypatch, Arithmetic)
    config = config_of(data, **{"report": "validation", "star.rounds": 1})
    build(config, tmp_path).complete()
    found = json.loads((tmp_path / "results.json").read_text())
    assert "policy" not in found
    assert found["round_1"]["accuracy"] == found["validation"]["accuracy"]
    asked = star.build_star(read_policy_run(config_of(data, **{"star.rounds": 1})), tmp_path)
    assert asked.first == 1, "a round that has reported on validation has still to read the test"


@pytest.mark.slow
def test_rationales_of_another_config_are_sampled_anew(data, tmp_path, monkeypatch):
    """A round without a checkpoint is nobody's yet, and what lies there must not be learnt from."""
    config = star.round_config(read_policy_run(config_of(data)), 1)
    kept = [star.Rationale(3, [5, 6], hinted=True, text="any")]
    star.remember(config, tmp_path, kept)
    assert star.remembered(config, tmp_path) == kept
    other = star.round_config(read_policy_run(config_of(data, **{"star.samples": 2})), 1)
    assert star.remembered(other, tmp_path) is None
    longer = star.round_config(read_policy_run(config_of(data, **{"star.rounds": 5})), 1)
    assert star.remembered(longer, tmp_path) == kept, "more rounds may be asked for later"
    assert star.remembered(config, tmp_path / "nothing") is None


class Parity:
    """Graded, and not hinted: even ids are right; a query's own number is its prompt."""

    def decode(self, ids):
        return " ".join(map(str, ids))

    def grade(self, split, example, completion):
        assert split == "train"
        return all(int(word) % 2 == example % 2 for word in completion.split())


def test_right_ones_keep_their_queries_and_their_number():
    rows = [[[2, 4], [3], [2, 4]], [[2], [5], [7, 9]]]
    kept = star.right_ones(Parity(), [6, 9], rows, hinted=False)
    assert [(each.example, each.ids) for each in kept] == [(6, [2, 4]), (6, [2, 4]), (9, [5]), (9, [7, 9])]
    assert star.counts_of(kept) == {"rationales": 4, "rationales_by_hint": 0, "queries_solved": 2}
    assert isinstance(Parity(), Graded)
    assert not isinstance(Parity(), Hinted)


def test_what_the_hint_is(task):
    plain, hinted = (
        task.decode(np.asarray(query.prompt.ids[50])[np.asarray(query.prompt.mask[50])].tolist())
        for query in (task.queries("train", 1), task.hinted_queries("train", 1))
    )
    example, shown = task.splits["train"][50], task.splits["context"][0]
    assert plain.strip() == f"{shown.demonstration}{example.question}"
    assert hinted.strip() == plain.strip().replace("= ?", f"= {shown.answer}", 1).replace("= ?", f"= {example.answer}")
    with pytest.raises(ValueError, match=r"4 demonstrations are asked for in a prompt; arithmetic\.reward_shots is 3"):
        task.queries("train", 4)


@pytest.mark.slow
def test_a_round_that_finds_nothing_says_so(data, tmp_path, monkeypatch):
    monkeypatch.setattr(star, "sample_completions", lambda model, prompt, *rest: [[[]]] * len(prompt.ids))
    with pytest.raises(ValueError, match=r"^round 1 of star found no rationale that is right: more star\.samples"):
        build(config_of(data), tmp_path)


@pytest.mark.parametrize(
    ("config", "changes", "problem"),
    [
        ("subj", [], r"the task subjectivity grades none"),
        ("rng", ["--config.star.shots=2"], r"star\.shots is 2; the task random_numbers puts no demonstrations"),
        ("arith", ["--config.star.shots=4"], r"arithmetic\.reward_shots is 3"),
        ("arith", ["--config.star.growth=0.5"], r"star\.growth is 0\.5; it must be"),
        ("subj", ["--config.em.rounds=1"], r"em\.rounds is 1; algorithm 'star' has rounds of its own"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_read(config, changes, problem, tmp_path, monkeypatch):
    monkeypatch.setattr("gfn_jax.runs.policy.load_base", lambda *args: pytest.fail("the base was read"))
    words = ["launch", f"--config=configs/{config}.py", "--config.algorithm=star", *changes]
    with pytest.raises(ValueError, match=problem):
        build(parse(words).config, tmp_path)


def test_completions_are_sampled_by_the_evaluations_own_function():
    """So that devices share them as they share an evaluation's."""
    assert star.sample_completions is sample_completions
