"""The protocol: what rows may differ in, as many trials, and no held-out question among what is learnt from."""

import dataclasses
import itertools
import json
import pathlib

import pytest

from gfn_jax.commands.reproduce import config_flags
from gfn_jax.commands.train import parse
from gfn_jax.runs.config import read_policy_run
from gfn_jax.studies import protocol, tuning
from gfn_jax.studies.protocol import check_decontamination, check_protocol, check_trials
from gfn_jax.studies.study import Column, Job, Row, Study
from gfn_jax.studies.tables import studies
from gfn_jax.tasks.arithmetic import Arithmetic
from gfn_jax.tasks.continuation import Continuation
from gfn_jax.tasks.infilling import Infilling
from gfn_jax.tasks.subjectivity import Subjectivity
from gfn_jax.worlds import arithmetic_corpus, reviews_corpus
from gfn_jax.worlds.stories import draw_stories

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def config_of(job):
    return config_flags(job).config.to_dict()


def two_rows(*words, config="configs/arith.py", differing=()):
    """A study of a GFlowNet and of supervised fine-tuning with changes, two seeds each, and its jobs' configs."""

    def row(title, *own):
        jobs = [Job(f"{title}/seed-{n}", "any", (f"--config={config}", f"--config.seed={n}", *own)) for n in (0, 1)]
        return Row(title, tuple(jobs))

    rows = (row("one"), row("other", *(f"--config.{word}" for word in words)))
    study = Study("s", "S", "", "", (Column("accuracy_3", "3"),), rows, lambda cells: "", differing=differing)
    return study, {job.name: config_of(job) for job in study.jobs}


def test_methods_and_their_own_settings_may_differ():
    words = ["algorithm=sft", "steps=60", "optimizer.learning_rate=0.1", "lora.rank=8", "sampling.samples=4"]
    check_protocol(*two_rows(*words, "arithmetic.seed_demonstrations=10", "evaluation.every=7"))
    check_protocol(*two_rows("subjectivity.labels=10", config="configs/subj.py"))


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("arith", "model.path=tiny-stories"),
        ("arith", "model.quantize=int8"),
        ("arith", "lora.targets=('q',)"),
        ("arith", "evaluation.samples=20"),
        ("arith", "evaluation.temperature=0.5"),
        ("arith", "evaluation.test_questions=10"),
        ("arith", "evaluation.seed=1"),
        ("arith", "report=validation"),
        ("arith", "data.path=elsewhere"),
        ("arith", "arithmetic.eval_max_length=40"),
        ("subj", "subjectivity.data_seed=3"),
        ("infill", "infilling.test_stories=10"),
        ("continuation", "continuation.validation=10"),
    ],
)
def test_runs_that_are_measured_on_other_terms_are_refused(config, word):
    key = word.partition("=")[0]
    study, configs = two_rows(word, config=f"configs/{config}.py")
    with pytest.raises(ValueError, match=rf"study s compares runs that differ in {key}: .* in 'one', .* in 'other'"):
        check_protocol(study, configs)
    check_protocol(dataclasses.replace(study, differing=(key,)), configs)


def test_rows_are_compared_seed_by_seed_and_task_by_task():
    study, configs = two_rows()
    (first, second), others = study.rows[0].jobs, study.rows[1].jobs
    crossed = (study.rows[0], dataclasses.replace(study.rows[1], jobs=others[::-1]))
    with pytest.raises(ValueError, match="differ in seed: 0 in 'one', 1 in 'other'"):
        check_protocol(dataclasses.replace(study, rows=crossed), configs)
    stories = config_of(Job("any", "any", ("--config=configs/infill.py",)))
    check_protocol(study, configs | {first.name: stories})
    check_protocol(study, {first.name: configs[first.name]})
    assert second.name in configs


def test_the_papers_models_have_the_papers_settings():
    given = []
    for preset in ("tiny", "paper"):
        (row,) = (row for row in studies(preset, (0,))["table4"].rows if row.title == "GFlowNet")
        given.append(any(word.startswith("--config.steps=") for word in row.jobs[0].arguments))
    assert given == [True, False]


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_the_studies_of_this_project_keep_to_it(preset):
    for study in studies(preset, (0, 1)).values():
        check_protocol(study, {job.name: config_of(job) for job in study.jobs if config_flags(job)})


def test_methods_with_other_numbers_of_trials_are_refused(tmp_path, monkeypatch):
    def write(name, trials, seeds=(10, 11)):
        path = tmp_path / f"arithmetic-{name}.json"
        path.write_text(json.dumps({"trials": [{}] * trials, "seeds": [*seeds]}))

    monkeypatch.setattr(protocol, "record_of", lambda task, name: tuning.record_of(task, name, tmp_path))
    write("sft", 8), write("ppo", 8), write("star", 6), write("dpo", 8, (10,))
    check_trials("arithmetic", ["sft", "ppo"])
    with pytest.raises(ValueError, match="on arithmetic ppo was tuned with 8 trials, star with 6"):
        check_trials("arithmetic", ["sft", "ppo", "star"])
    with pytest.raises(ValueError, match=r"sft was tuned with \[10, 11\] seeds, dpo with \[10\]"):
        check_trials("arithmetic", ["sft", "dpo"])
    with pytest.raises(ValueError, match="no trials of rloo"):
        check_trials("arithmetic", ["sft", "rloo"])

    monkeypatch.setattr(protocol, "untuned", lambda task, names: tuning.untuned(task, names, tmp_path))
    study, configs = two_rows("steps=3")
    check_protocol(dataclasses.replace(study, tuned={"arithmetic": ("sft", "ppo", "rloo")}), configs)
    with pytest.raises(ValueError, match="on arithmetic ppo was tuned with 8 trials, star with 6"):
        check_protocol(dataclasses.replace(study, tuned={"arithmetic": ("ppo", "rloo", "star")}), configs)


TASKS = {"arith": Arithmetic, "infill": Infilling, "subj": Subjectivity, "continuation": Continuation}


def own_task(name):
    """The tiny preset's; its questions need no tokenizer."""
    run = read_policy_run(parse(["launch", f"--config=configs/{name}.py"]).config)
    return TASKS[name](run.task, None, 0)


CORPORA = {
    "arith": lambda: arithmetic_corpus.documents(arithmetic_corpus.CorpusConfig(documents=200, seed=0)),
    "infill": lambda: (" ".join(story.sentences) for story in draw_stories("pretraining", 300)),
    "subj": lambda: reviews_corpus.documents(reviews_corpus.ReviewsCorpusConfig(documents=300, seed=0)),
    "continuation": lambda: (),
}


@pytest.mark.parametrize("name", TASKS)
def test_no_task_learns_from_what_it_is_asked(name):
    check_decontamination(own_task(name), itertools.islice(CORPORA[name](), 300))


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions by split."""

    splits: dict

    def question(self, split, example):
        return self.splits[split][example]


def test_a_question_that_is_learnt_from_is_named():
    clean = {"train": ["a", "b"], "context": ["c"], "validation_3": ["d"], "test_3": ["e"]}
    check_decontamination(Questions(clean), ["a b c"])
    for split, other in (("train", "test_3"), ("context", "validation_3"), ("validation_3", "test_3")):
        leaky = {**clean, split: [*clean[split], clean[other][0]]}
        with pytest.raises(ValueError, match=rf"a question of {other} is in {split}: '{clean[other][0]}'"):
            check_decontamination(Questions(leaky))
    with pytest.raises(ValueError, match="a question of test_3 is in the corpus: 'e'"):
        check_decontamination(Questions(clean), ["abc", "b and e"])
    released = {**clean, "test_3": ["e", "a"], "test_3_decontaminated": ["e"]}
    check_decontamination(Questions(released))
    with pytest.raises(ValueError, match="test_3_decontaminated is in train"):
        check_decontamination(Questions({**released, "test_3_decontaminated": ["e", "a"]}))


@pytest.mark.reference
def test_the_released_data_is_reported_without_what_it_shares_too(shared):
    run = read_policy_run(parse(["launch", "--config=configs/arith.py"]).config)
    task = Arithmetic(dataclasses.replace(run.task, path=str(shared / "data" / "arithmetic")), None, 0)
    check_decontamination(task)
    alone = {name: examples for name, examples in task.splits.items() if not name.endswith("_decontaminated")}
    with pytest.raises(ValueError, match=r"a question of test_\d is in (train|seeds|context)"):
        check_decontamination(Questions({name: [e.question for e in examples] for name, examples in alone.items()}))
