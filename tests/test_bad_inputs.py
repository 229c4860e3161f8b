"""What is wrong with a command, a config, a file or a user's code is one line, said before any weight is read."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import types
import typing
from typing import Annotated

import ml_collections
import pytest

from gfn_jax import launch, sections
from gfn_jax.commands import train
from gfn_jax.evaluation import arithmetic as arithmetic_evaluation
from gfn_jax.evaluation import continuation as continuation_evaluation
from gfn_jax.evaluation import infilling as infilling_evaluation
from gfn_jax.evaluation import random_numbers as random_numbers_evaluation
from gfn_jax.evaluation import subjectivity as subjectivity_evaluation
from gfn_jax.runs import config
from gfn_jax.tasks import arithmetic, continuation, infilling, random_numbers, subjectivity, texts
from gfn_jax.worlds import corpora

ROOT = pathlib.Path(__file__).parents[1]
REVIEW = '{"text": "a film .", "label": 0, "label_text": "objective"}\n'
SHIPPED = ROOT / "gfn_jax" / "assets" / "tiny-arithmetic"
PLAIN = "from configs.own_task import *\n"  # a user's task, to be spoilt
REWARD = """
class Spoilt:
    def prepare(self, params): return ()
    def log_reward(self, params, prepared, query, rollout): return {}
Sentences.reward = lambda self, model: Spoilt()
"""

# Name -> text (or bytes) of the files that the cases below speak of.
FILES: dict[str, str | bytes] = {
    "empty.py": "",
    "raises.py": "def get_config():\n    return {}['learning_rate']",
    "fails.py": "1 / 0",
    "prose.py": "this is no python",
    "binary.py": b"\xff\xfe\x00",
    "dict.py": "def get_config():\n    return {'steps': 3}",
    "none.py": "def get_config():\n    pass",
    "number.py": "get_config = 3",
    "user.py": """
import numpy as np
def raises(strings): return strings["no such key"]
def nothing(strings): pass
def narrow(strings): return np.zeros((1, 3), int), [0.0]
def floats(strings): return np.zeros((1, len(strings))), [0.0]
def infinite(strings): return np.zeros((1, len(strings)), int), [-np.inf]
def beyond(strings): return np.full((1, len(strings)), 7), [0.0]
""",
    "broken.py": "import nothing_of_that_name",
    "task_raises.py": PLAIN + "Sentences.queries = lambda self, split: {}['train']",
    "task_weight.py": PLAIN + "Sentences.query_weight = lambda self: np.full(200, np.nan)",
    "task_reward.py": PLAIN + "WordCount.log_reward = lambda self, p, kept, query, out: kept.no_such_attribute",
    "task_shape.py": PLAIN + REWARD.format("(rollout.completion * 1.0)[:, 0]"),
    "task_dtype.py": PLAIN + REWARD.format("rollout.completion"),
    "task_tokens.py": PLAIN + "import dataclasses\nproper = Sentences.queries\n"
    "def queries(self, split):\n"
    "    query = proper(self, split)\n"
    "    prompt = dataclasses.replace(query.prompt, ids=query.prompt.ids / 2)\n"
    "    return dataclasses.replace(query, prompt=prompt)\n"
    "Sentences.queries = queries",
    "prompts.txt": "".join(f"This is sentence number {n}.\n" for n in range(30)),
    "latin.txt": "caf\xe9\n".encode("latin-1"),
    "blank.txt": "\n \n",
    "subj/train.jsonl": REVIEW * 3,
    "subj/train.10.jsonl": REVIEW,
    "subj/test.jsonl": REVIEW,
    "hollow/train.jsonl": "",
    "latin/train.jsonl": b'{"text": "caf\xe9"}',
    "layers/config.json": json.dumps(json.loads((SHIPPED / "config.json").read_text()) | {"num_hidden_layers": 0}),
    "layers/tokenizer.json": (SHIPPED / "tokenizer.json").read_text(),
}
SECTIONS = (
    "model",
    "mesh",
    "lora",
    "sampling",
    "exploration",
    "replay",
    "objective",
    "optimizer",
    "reward",
    "arithmetic",
    "evaluation",
)
LACKS = "from configs.arith import tiny\ndef get_config():\n    config = tiny()\n    del config.{}\n    return config"
NUMBERS = "random_numbers"
FEW = "infilling.train_stories=4 infilling.seed_stories=4 sampling.queries=2"
# (config, what is changed in it, words that the line must hold, in their order)
CASES: list[tuple[str, str, str]] = [
    ("arith", f"{key}={value}", f"{key} is {shown or value}; it must be")
    for key, value, shown in [
        # Accepted in silence before.
        ("optimizer.learning_rate", "inf", ""),
        ("optimizer.b1", "2", "2.0"),
        ("optimizer.b2", "1", "1.0"),
        ("optimizer.eps", "0", "0.0"),
        ("optimizer.weight_decay", "nan", ""),
        ("lora.dropout", "-0.5", ""),
        ("lora.dropout", "1", "1.0"),
        ("lora.alpha", "nan", ""),
        ("arithmetic.seed_share", "2", "2.0"),
        ("exploration.uniform_mix", "2", "2.0"),
        ("exploration.exploring", "-1", "-1.0"),
        ("exploration.tempered", "nan", ""),
        ("replay.tolerance", "-1", "-1.0"),
        ("exploration.temperature_low", "1e-30", ""),
        ("sampling.reward_temperature_end", "inf", ""),
        ("objective.log_z_rate", "0", "0.0"),
        ("replay.recency_steps", "0", "0.0"),
        ("reward.penalty", "nan", ""),
        ("reward.task", "nan", ""),
        ("objective.terms.vargrad", "nan", ""),
        ("objective.subtb_lambda", "nan", ""),
        # Tracebacks, hangs and lines that blamed something else.
        ("lora.rank", "1000000000", ""),
        ("sampling.micro_batches", "0", ""),
        ("seed", "99999999999999999999", ""),
        ("seed", "-1", ""),
        ("steps", "0", ""),
        ("steps", "-5", ""),
        ("log_every", "0", ""),
        ("save_every", "0", ""),
        ("replay.discovery_steps", "70", ""),
        ("replay.capacity", "0", ""),
        ("sampling.queries", "0", ""),
        ("sampling.samples", "0", ""),
        ("arithmetic.reward_shots", "-1", ""),
        ("arithmetic.max_abs_value", "0", ""),
        ("model.dtype", "int8", "'int8'"),
        ("model.quantize", "int4", "'int4'"),
        ("mesh.data", "-2", ""),
        # Values that may not be unset, and one that may, said in the form that can be typed.
        ("optimizer.learning_rate", "None", ""),
        ("sampling.queries", "None", ""),
    ]
]
CASES += [
    ("arith", "optimizer.clip_norm=-1", "optimizer.clip_norm is -1.0; above 0 --config.optimizer.clip_norm=None"),
    ("arith", "objective.huber=0", "objective.huber is 0.0; --config.objective.huber=None"),
    ("arith", "optimizer.warmup_steps=70", "optimizer.warmup_steps is 70; less than"),
    ("arith", "replay.samples=8", "replay.samples is 8; less than sampling.samples"),
    ("arith", "sampling.queries=2000", "sampling.queries is 2000; 1047"),
    ("arith", "arithmetic.reward_shots=51", "arithmetic.reward_shots is 51; 50"),
    ("arith", "arithmetic.seed_demonstrations=48", "arithmetic.seed_demonstrations is 48; 0 to 47"),
    ("arith", "arithmetic.min_length=25", "arithmetic.min_length is 25; max_length is 20"),
    ("arith", "evaluation.shots=500", "evaluation.shots is 500; there are 50"),
    ("arith", "model.path=", "model.path is empty"),
    ("arith", "task=", "task '' is unknown"),
    ("arith", "sampling.samples=1 replay.samples=0", "sampling.samples is 1; vargrad"),
    ("arith", "objective.window=0", "objective.window is 0; --config.objective.window=None"),
    ("arith", "objective.log_z=known", "objective.log_z is 'known'; learnt, amortised, frozen"),
    ("arith", "objective.contrastive_margin=-1", "objective.contrastive_margin is -1.0; at least 0"),
    ("arith", "objective.ratio_clip=2", "objective.ratio_clip is 2.0; from 0 to 1"),
    (
        "arith",
        "objective.smoothing_steps=5 objective.imitation_steps=0 replay.samples=0",
        "objective.smoothing_steps is 5; replay.samples above 0",
    ),
    ("arith", "objective.imitation_steps=71", "objective.imitation_steps is 71; 70 steps learn"),
    ("arith", "objective.smoothing_steps=71", "objective.smoothing_steps is 71; 70 steps learn"),
    ("arith", "objective.terms.tb=1 objective.terms.flowrl=1", "objective.terms.flowrl has another log Z than tb"),
    ("arith", "objective.log_z=frozen objective.terms.flowrl=1", "objective.log_z is 'frozen' flowrl"),
    ("arith", "model.path=layers", "num_layers is 0; at least 1"),
    ("continuation", "continuation.count=0", "continuation.count is 0; --config.continuation.count=None"),
    ("continuation", "data.path=prompts.txt", "continuation.validation is 50; there are 30"),
    ("continuation", "data.path=latin.txt", "latin.txt, byte 3: not UTF-8"),
    ("continuation", "data.path=blank.txt", "blank.txt holds no prompts"),
    ("rng", "data.path=numbers.txt", "data.path is 'numbers.txt'; the task random_numbers reads no files"),
    ("continuation", "evaluation.nucleus=(2.0,)", "evaluation.nucleus is (2.0,); above 0 to 1"),
    ("continuation", "evaluation.temperatures=(0.0,)", "evaluation.temperatures is (0.0,); from 0.001"),
    ("continuation", "evaluation.diverse_penalty=nan", "evaluation.diverse_penalty is nan"),
    ("infill", "infilling.train_stories=1000000000", "infilling.train_stories is 1000000000; from 1 to 100000"),
    ("infill", "infilling.seed_stories=4000", "infilling.seed_stories is 4000; train_stories"),
    ("infill", f"{FEW} evaluation.temperature=nan", "evaluation.temperature is nan"),
    ("subj", "subjectivity.labels=100001", "subjectivity.labels is 100001; from 1 to 20000"),
    ("subj", "subjectivity.wrong_label_penalty=nan", "subjectivity.wrong_label_penalty is nan"),
    ("subj", "evaluation.temperature=-1", "evaluation.temperature is -1.0; from 0.001 to 1000 or 0"),
    ("subj", "evaluation.batch=0", "evaluation.batch is 0"),
    ("subj", "evaluation.shots=500", "evaluation.shots is 500; there are 50"),
    (
        "subj",
        "data.path=subj subjectivity.labels=10",
        "subjectivity.validation is 100; subj has 0 beside the 1",
    ),
    ("subj", "data.path=subj subjectivity.labels=11", "subjectivity.labels is 11; SUBJ has 10, 20, 50"),
    ("subj", "data.path=hollow", "train.jsonl holds no examples"),
    ("subj", "data.path=latin", "train.jsonl, byte 13: not UTF-8"),
    ("subj:em", "em.steps=0", "em.steps is 0; at least 1"),
    ("subj:em", "em.warmup_steps=120", "em.warmup_steps is 120; less than em.steps"),
    ("subj:em", "em.learning_rate=nan", "em.learning_rate is nan"),
    ("rng", f"{NUMBERS}.high=100000000", f"{NUMBERS}.high is 100000000 1 to 100000"),
    ("rng", f"{NUMBERS}.penalty=nan", f"{NUMBERS}.penalty is nan; above 0"),
    ("rng", "evaluation.every=0", "evaluation.every is 0"),
    ("rng", f"{NUMBERS}.copies=0", f"{NUMBERS}.copies is 0"),
    ("rng", f"{NUMBERS}.distribution=poisson {NUMBERS}.mean=nan", f"{NUMBERS}.mean is nan; finite"),
    ("rng", f"{NUMBERS}.distribution=poisson {NUMBERS}.mean=-1", f"{NUMBERS}.mean is -1.0; positive"),
    ("rng", f"{NUMBERS}.distribution=table", f"{NUMBERS}.table needs weights"),
    ("finetune", "", "data.path is not set"),
    ("finetune", "data.path=x.txt data.validation=nan", "data.validation is nan; above 0 and below 1"),
    ("finetune", "data.path=x.txt micro_batches=0", "micro_batches is 0"),
    ("finetune", "data.path=x.txt steps=0", "steps is 0; --config.steps=None"),
    ("finetune", "data.path=x.txt epochs=inf", "epochs is inf"),
    ("finetune", "data.path=latin.txt", "latin.txt, byte 3: not UTF-8"),
    ("pretrain", "model.num_layers=0", "model.num_layers is 0"),
    ("pretrain", "phases.first_knowledge.chain=nan", "phases.first_knowledge.chain is nan"),
    ("pretrain", "phases.first_knowledge.steps=0", "phases.first_knowledge.steps is 0"),
    ("pretrain", "batch=0", "batch is 0"),
    ("benchmark", "", "the config lacks log_every, save_every"),
    ("own_task", "sentence.words=0", "sentence.words is 0; at least 1"),
    ("own_task", "sentence.penalty=nan", "sentence.penalty is nan"),
    ("own_task", "evaluation.every=0", "evaluation.every is 0"),
    ("own_task", "task=broken:TASK", "'broken:TASK' cannot be imported: ModuleNotFoundError"),
    ("own_task", "task=task_raises:TASK", "task_raises:TASK: queries('train') raised KeyError: 'train' (--debug"),
    ("own_task", "task=task_weight:TASK", "task_weight:TASK: query_weight() must return 200 finite numbers [nan]"),
    (
        "own_task",
        "task=task_shape:TASK",
        "log_reward must return a number for every prefix [rows, 13]; returned float32 (2,)",
    ),
    ("own_task", "task=task_reward:TASK", "task_reward:TASK: reward(model).log_reward raised AttributeError"),
    ("own_task", "task=task_dtype:TASK", "log_reward must return floats [rows, 13]; returned int32 (2, 13)"),
    ("own_task", "task=task_tokens:TASK", "queries('train'): prompt must have ids, whole numbers float32"),
    ("rng", "reward.automaton=user:raises", "reward.automaton user:raises raised TypeError: (--debug"),
    ("rng", "reward.automaton=user:nothing", "reward.automaton user:nothing must return (following, value)"),
    ("rng", "reward.automaton=user:narrow", "reward.automaton user:narrow must return [states, 81]"),
    ("rng", "reward.automaton=user:floats", "reward.automaton user:floats must return whole numbers"),
    ("rng", "reward.automaton=user:infinite", "reward.automaton user:infinite must return finite numbers"),
    ("rng", "reward.automaton=user:beyond", "reward.automaton user:beyond: a row for each of 1 states"),
    ("rng", "reward.function=user:absent", "'user:absent' cannot be imported"),
]
COMMANDS: list[tuple[list[str], str]] = [
    (["--config=empty.py"], "empty.py is no config: it defines no get_config()"),
    (["--config=raises.py"], "raises.py raised KeyError: 'learning_rate' (--debug"),
    (["--config=fails.py"], "fails.py raised ZeroDivisionError"),
    (["--config=prose.py"], "prose.py raised SyntaxError line 1"),
    (["--config=binary.py"], "binary.py raised"),
    (["--config=dict.py"], "get_config of dict.py must return an ml_collections.ConfigDict, not dict"),
    (["--config=dict.py", "--config.steps=2"], "get_config of dict.py must return"),
    (["--config=none.py"], "get_config of none.py must return not NoneType"),
    (["--config=number.py"], "number.py raised TypeError"),
    (["--config=none.py", "--config=dict.py"], "there are 2 configs, none.py and dict.py; name one"),
    (["--config="], "--config names no file"),
    *(([f"--config={name}.py"], f"the config has no section '{name}'") for name in SECTIONS),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Data sets are built once for all."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(tmp_path, monkeypatch, cache):
    """The files above in the current folder; nothing may read a weight."""
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in SECTIONS:
        (tmp_path / f"{name}.py").write_text(LACKS.format(name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GFN_JAX_CACHE", str(cache))
    for path in (ROOT, tmp_path):
        monkeypatch.syspath_prepend(str(path))
    modules = {name.removesuffix(".py") for name in FILES if name.endswith(".py")} | {"configs", "configs.own_task"}
    for name in modules:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr("gfn_jax.runs.weights.load_model", refuse)
    yield tmp_path
    for name in modules:
        sys.modules.pop(name, None)


def is_refused(capsys, arguments: list[str], words: str) -> None:
    """Exit code 2 and one line that holds all the words, in their order."""
    assert launch.main(["launch", *arguments, "--workdir=run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    place = 0
    for word in words.split():
        place = err.find(word, place)
        assert place >= 0, f"{word!r} is missing, or out of order, in: {err}"


@pytest.mark.parametrize(("config", "changes", "words"), CASES, ids=[f"{c}-{o}" for c, o, _ in CASES])
def test_a_bad_value_is_one_line_that_names_it(folder, capsys, config, changes, words):
    name, _, preset = config.partition(":")
    changed = [f"--config.{change}" for change in changes.split()]
    is_refused(capsys, [f"--config={ROOT / 'configs' / name}.py{preset and ':' + preset}", *changed], words)


@pytest.mark.parametrize(("arguments", "words"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_a_bad_command_is_one_line_that_names_it(folder, capsys, arguments, words):
    is_refused(capsys, arguments, words)


def test_debug_shows_where_a_config_raises(folder):
    with pytest.raises(ValueError, match=r"fails\.py") as caught:
        launch.main(["launch", "--config=fails.py", "--debug"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_a_person_sees(folder):
    """The real command: one line, no traceback."""
    command = [sys.executable, "-m", "gfn_jax.launch", f"--config={ROOT / 'configs' / 'arith.py'}"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--config.lora.dropout=1"], capture_output=True, text=True, timeout=300, env=environ
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"(\d\d:\d\d:\d\d  (task arithmetic, |(  still: )?starting in runs/arith-tiny).*\n)+", done.stdout
    )
    assert done.stderr == "error: lora.dropout is 1.0; it must be a finite number from 0 and below 1\n"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ("arith", "optimizer.clip_norm"),
        ("arith", "objective.huber"),
        ("arith", "data.path"),
        ("rng", "reward.function"),
        ("continuation", "continuation.count"),
        ("infill", "evaluation.judge_url"),
        ("finetune", "steps"),
    ],
)
def test_what_is_optional_can_be_unset_on_the_command_line(config, key):
    file = f"--config={ROOT / 'configs' / config}.py"
    found = train.parse(["launch", file, f"--config.{key}=None"]).config
    for name in key.split("."):
        found = found[name]
    assert found is None


# A field that may hold any finite number.
ANY = {(random_numbers.RandomNumbersConfig, "mean")}


def kinds_of(kind) -> list:
    """The types that a type is made of; an annotated one is whole."""
    if typing.get_origin(kind) in (None, Annotated, typing.Literal):
        return [kind]
    return [part for one in typing.get_args(kind) for part in kinds_of(one)]


def configs_of(module: types.ModuleType) -> list[type]:
    own = (value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__)
    return [value for value in own if dataclasses.is_dataclass(value) and value.__name__.endswith("Config")]


def test_every_number_of_a_config_has_a_range():
    modules = [config, sections, arithmetic, continuation, infilling]
    modules += [random_numbers, subjectivity, texts, arithmetic_evaluation, continuation_evaluation]
    modules += [infilling_evaluation, random_numbers_evaluation, subjectivity_evaluation]
    found = {cls for module in modules for cls in configs_of(module)}
    found |= {kind.config for kind in corpora.CORPORA.values()}
    parts = sections.field_types(config.PolicyRun) | sections.field_types(config.Finetuning)
    found |= {kind for kind in parts.values() if getattr(kind, "__name__", "").endswith("Config")}
    bare = [
        f"{cls.__name__}.{name}"
        for cls in found
        for name, kind in sections.field_types(cls).items()
        if {int, float} & set(kinds_of(kind)) and (cls, name) not in ANY
    ]
    assert len(found) > 20
    assert sorted(bare) == ["CorpusConfig.operands"]  # pairs, which it checks itself


@dataclasses.dataclass(frozen=True)
class Words:
    """A user's own section, unchecked but for its types."""

    share: float
    names: tuple[str, ...]
    count: int = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": float("nan"), "names": ()}, "words.share is nan; it must be a finite number"),
        ({"share": "1", "names": ()}, "words.share is '1'"),
        ({"share": 1, "names": (1,)}, "words.names is (1,); it must be a tuple of values that are each a text"),
        ({"share": 1, "names": (), "count": True}, "words.count is True; it must be a whole number"),
        ({"share": 1, "names": (), "cuont": 1}, "the config section 'words' has unknown cuont"),
        ({"share": 1}, "the config section 'words' lacks names"),
    ],
)
def test_types_are_checked_in_any_section(values, message):
    config = ml_collections.ConfigDict({"words": {"count": 1, **values}})
    with pytest.raises(ValueError, match=re.escape(message)):
        sections.section(Words, config, "words")
