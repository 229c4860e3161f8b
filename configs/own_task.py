"""Your own task in one file: a story goes on with a sentence of exactly six words.

    python -m gfn_jax.launch --config=configs/own_task.py

Presets:

    :tiny     150 steps on the stories' model that the project ships (default)
    :smoke    four steps: seconds on any --config.model.path

The file is task, evaluator and config at once. `config.task` names the entry by its import path, so nothing in the
library has to be changed; copy the file, and change what is yours. WORKSPACE.md ("Your own task") goes through it.

The target is  R(Z) = p_LM(Z stop | X) exp(-penalty |words in Z - words wanted|):  a sentence that the base finds
likely, and that has the length. Nobody can sample this from left to right: how many words are still to come decides
which are likely now.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.report import Findings, table
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.rewards import PosteriorReward, Product
from gfn_jax.runs.defaults import policy_config, shortened
from gfn_jax.sections import Count, Nonnegative
from gfn_jax.tasks.task import TaskEntry
from gfn_jax.text.batching import make_seeds, pad_left, pad_right
from gfn_jax.text.tokens import encode_after, stop_token, token_strings
from gfn_jax.types import Query
from gfn_jax.worlds.stories import draw_stories

# 1. The config's sections, as frozen dataclasses: a key that is misspelt or missing, and a value out of range, is an
# error (`gfn_jax/sections.py`: Count is a whole number of at least 1).


@dataclasses.dataclass(frozen=True)
class SentenceConfig:
    """What is wanted of a sentence.

    Attributes:
        words: how many there should be.
        penalty: nats that a word too many or too few costs.
        max_length: the longest Z, in tokens.
    """

    words: Count
    penalty: Nonnegative
    max_length: Count


@dataclasses.dataclass(frozen=True)
class SentenceEvaluationConfig:
    """How it is measured.

    Attributes:
        every: steps between two measurements.
        samples: sentences that are sampled for each story then.
    """

    every: Count
    samples: Count


# 2. The reward. A prefix's log R must be computed for all prefixes at once, under jit: [B, T].


@dataclasses.dataclass(frozen=True)
class WordCount:
    """log R(z_1:t) = -penalty |words in z_1:t - words|, a word beginning where a token's text begins one."""

    begins_word: np.ndarray  # [V]
    words: int
    penalty: float

    def prepare(self, model):
        """What the run keeps on the device."""
        return jnp.asarray(self.begins_word, jnp.int32)

    def log_reward(self, model, prepared, query, rollout):
        """[B, T] in nats: the first t tokens count for state t."""
        begun = jnp.where(rollout.token_mask, prepared[rollout.completion], 0)
        counted = jnp.cumsum(begun, axis=1) - begun
        return -self.penalty * jnp.abs(counted - self.words).astype(jnp.float32)


# 3. The task: queries, constraint, reward, seeds (gfn_jax/tasks/task.py).


@dataclasses.dataclass(frozen=True)
class Sentences:
    """X: the first three sentences of a story."""

    config: SentenceConfig
    tokenizer: object
    vocab_size: int

    environment = NoTool()

    def queries(self, split):
        """200 stories to train on, 20 others to validate, or to test; the policy sees what the reward sees."""
        room = "training" if split == "train" else split
        texts = [story.beginning.text for story in draw_stories(room, 200 if split == "train" else 20)]
        prompts = [encode_after(self.tokenizer, "", text) for text in texts]
        prompt = pad_left(prompts, self.stop_id)
        stops = pad_right([[self.stop_id]] * len(texts), self.stop_id)
        return Query(example_id=jnp.arange(len(texts)), prompt=prompt, context=prompt, answer=stops)

    def query_weight(self):
        """All alike."""
        return np.ones(200)

    @property
    def stop_id(self):
        """Z ends with a full stop."""
        return stop_token(self.tokenizer, ".")

    def constraint(self, training=True):
        """Any words; punctuation and special tokens are left out."""
        ids = [i for i, text in enumerate(token_strings(self.tokenizer)) if text.strip().isalpha()]
        return make_constraint(self.vocab_size, self.stop_id, self.config.max_length, 1, np.asarray(ids))

    def reward(self, model):
        """The base's probability, times the count's factor."""
        begins = np.zeros(self.vocab_size, bool)
        strings = token_strings(self.tokenizer)
        begins[: len(strings)] = [text.strip().isalpha() and text.startswith(" ") for text in strings]
        count = WordCount(begins, self.config.words, self.config.penalty)
        return Product((PosteriorReward(), count), (1.0, 1.0))

    def seeds(self):
        """The buffer starts empty."""
        return make_seeds([], [], self.stop_id, self.config.max_length)

    def decode(self, ids):
        """Z as text."""
        return self.tokenizer.decode(ids)


# 4. The evaluator: what is measured on the way, and at the end (gfn_jax/evaluation/report.py).


@dataclasses.dataclass(frozen=True)
class SentenceEvaluator:
    """The share of sampled sentences that have the length."""

    task: Sentences
    config: SentenceEvaluationConfig

    best_metric = "exact"

    @property
    def every(self):
        """Steps between two measurements."""
        return self.config.every

    def sample(self, model, split):
        """Sentences [20][samples] for the stories of a split."""
        task = self.task
        found = sample_completions(
            model,
            task.queries(split).prompt,
            Rules(task.constraint(training=False), task.environment),
            jax.random.key(0),
            self.config.samples,
            temperature=1.0,
            batch=20,
        )
        return [[task.decode(ids) for ids in row] for row in found]

    def measure(self, model, split) -> dict[str, float]:
        """`exact` in percent, and the mean number of `words`."""
        counts = np.asarray([[len(text.split()) for text in row] for row in self.sample(model, split)])
        return {"exact": float(100 * (counts == self.task.config.words).mean()), "words": float(counts.mean())}

    def validate(self, model) -> dict[str, float]:
        """On the way: of stories that no test looks at."""
        return self.measure(model, "validation")

    def describe(self, validated: Mapping[str, float]) -> str:
        """For a line of progress."""
        return f"exact {validated['exact']:.0f} %"

    def report(self, model) -> Findings:
        """The base, the policy, and a few of its sentences."""
        found = {"base": self.measure(model.base, "test"), "policy": self.measure(model, "test")}
        rows = [(name, values["exact"], values["words"]) for name, values in found.items()]
        sentences = [row[0] for row in self.sample(model, "test")[:5]]
        return Findings(found, "\n".join([table(("", "exact, %", "words"), rows), "", *sentences]))


# 5. The entry that `config.task` names, and the config. The task is made from `config.sentence` as a SentenceConfig,
# the evaluator from `config.evaluation`; it has no use for the temperature that the reward ends at.

TASK = TaskEntry(
    section="sentence",
    config=SentenceConfig,
    evaluation=SentenceEvaluationConfig,
    task=lambda config, tokenizer, model: Sentences(config, tokenizer, model.vocab_size),
    evaluator=lambda config, task, model, temperature: SentenceEvaluator(task, config),
    stand_in="tiny-stories",
)


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    presets = {"tiny": tiny, "smoke": smoke}
    if preset not in presets:
        raise ValueError(f"preset {preset!r} is unknown; configs/own_task.py has {', '.join(presets)}")
    return presets[preset]()


def tiny() -> ml_collections.ConfigDict:
    config = policy_config("configs.own_task:TASK")
    config.steps = 150
    config.model.path = "tiny-stories"
    config.objective.terms.vargrad = 1.0  # Z has a word at least: SubTB alone would not train its first
    config.sentence = {"words": 6, "penalty": 4.0, "max_length": 12}
    config.evaluation = {"every": 50, "samples": 16}
    return config


def smoke() -> ml_collections.ConfigDict:
    config = shortened(tiny())
    config.evaluation = {"every": 4, "samples": 2}
    return config
