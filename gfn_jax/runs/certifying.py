"""How far a run's policy is from its posterior: a certificate on the first queries of a split that it has not seen."""

import dataclasses
import functools
import logging

import jax

from gfn_jax.evaluation.certificate import Certificate
from gfn_jax.evaluation.certify import Estimator, ExactSamples, certify
from gfn_jax.evaluation.limits import Counts
from gfn_jax.interfaces import Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.rewards import Product
from gfn_jax.samplers.sampler import Problem
from gfn_jax.samplers.selection import Rejection, exact_samples, prior
from gfn_jax.sections import Count, Natural, Seed
from gfn_jax.tasks.task import Graded, Modal, Task
from gfn_jax.types import Query

AT_ONCE = 128  # rows of a query
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class CertificateConfig:
    """The section `certificate`: what a run's certificate is made of.

    Attributes:
        queries: the first of the task's held-out split; 0 makes no certificate.
        samples: rows of the policy a query.
        proposals: rejection sampling gives up on a query's exact samples after so many; 0 does not try.
        exact: exact samples of each query that are enough.
        seed: of all that is sampled.
    """

    queries: Natural
    samples: Count
    proposals: Natural
    exact: Count
    seed: Seed


@dataclasses.dataclass(frozen=True)
class Certifier:
    """What a certificate needs beside a policy.

    Attributes:
        task: its queries, rules and modes; completions are as long as in training.
        split: whose first queries it is about.
        reward: log R, untempered.
        temperature: T; the target is R^(1/T).
        config: how much is sampled.
    """

    task: Task
    split: str
    reward: Reward
    temperature: float
    config: CertificateConfig

    @functools.cached_property
    def target(self) -> Reward:
        """R^(1/T)."""
        return self.reward if self.temperature == 1 else Product((self.reward,), (1 / self.temperature,))

    def __call__(self, policy: LanguageModel, other: Estimator | None = None) -> Certificate:
        """Of a policy, whose base is the reward's model; `other` estimates Z beside it."""
        config, task = self.config, self.task
        query = jax.tree.map(lambda x: x[: config.queries], task.queries(self.split))
        rules = Rules(task.constraint(), task.environment)
        exacting, drawing = jax.random.split(jax.random.key(config.seed))
        samples = min(config.samples, AT_ONCE)
        modes = [task.modes(self.split, i) for i in range(len(query.example_id))] if isinstance(task, Modal) else None
        return certify(
            policy,
            self.target,
            query,
            rules,
            drawing,
            rows=-(-config.samples // samples) * samples,
            at_once=samples,
            exact=self.exact(policy, query, rules, exacting),
            other=other,
            mode=self.mode if isinstance(task, Modal) else None,
            known_modes=None if modes is None else [n for n in modes if n is not None] or None,
            grade=self.grade if isinstance(task, Graded) else None,
        )

    def exact(self, policy: LanguageModel, query: Query, rules: Rules, key: jax.Array) -> ExactSamples | None:
        """What rejection sampling from the base accepts; None, and a word why, where that would not be exact."""
        config = self.config
        if not config.proposals or jax.process_count() > 1:
            return None
        rejection, budget = Rejection(self.target), min(AT_ONCE, config.proposals)
        try:
            problem = Problem(jax.jit(self.target.prepare)(policy.base), prior(self.target, query), rules)
            found = exact_samples(rejection, policy.base, problem, budget, key, config.exact, config.proposals)
        except ValueError as error:
            _log.info("the certificate has no exact samples: %s", error)
            return None
        counts = [Counts(found.proposals, int(accepted), rejection.log_bound) for accepted in found.accepted]
        return ExactSamples(found.completion, found.length, found.log_reward, counts)

    def mode(self, query: int, ids: list[int]) -> object:
        """The mode of a completion."""
        assert isinstance(self.task, Modal)
        return self.task.mode(self.split, query, self.task.decode(ids))

    def grade(self, query: int, ids: list[int]) -> bool:
        """Whether a completion is right."""
        assert isinstance(self.task, Graded)
        return self.task.grade(self.split, query, self.task.decode(ids))


def summary(certificate: Certificate) -> str:
    """One line for the end of a run."""
    verdict, queries = certificate.verdict, len(certificate.exact)
    return f"Certificate, {queries} held-out queries: {verdict}"
