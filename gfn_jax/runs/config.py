"""The sections that every GFlowNet run has, read and checked before anything is loaded."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

import ml_collections

from gfn_jax.algorithms.gflownet import GFlowNetConfig
from gfn_jax.runs.rewards import RewardConfig
from gfn_jax.models.config import BaseModelConfig
from gfn_jax.models.lora import LoraConfig
from gfn_jax.objectives import Objective
from gfn_jax.sections import Count, Nonnegative, Positive, Range, RunConfig, section, top_level
from gfn_jax.training.mesh import MeshConfig
from gfn_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class GFlowNetRunConfig(RunConfig):
    """What the config holds beside its sections.

    Attributes:
        steps: of training, discovery included.
    """

    steps: Count


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """`objectives.Objective` as a config has it.

    Attributes:
        terms: name -> coefficient; 0 leaves a term out.
        normalization, subtb_lambda, huber: as there.
    """

    terms: Mapping[str, Nonnegative]
    normalization: Literal["paper_sum", "released_mean", "row_mean"]
    subtb_lambda: Annotated[float, Range(0, 2)]
    huber: Positive | None


@dataclasses.dataclass(frozen=True)
class GFlowNetSections:
    """The sections, each as its dataclass."""

    run: GFlowNetRunConfig
    model: BaseModelConfig
    mesh: MeshConfig
    lora: LoraConfig
    gflownet: GFlowNetConfig
    objective: Objective
    optimizer: OptimizerConfig
    reward: RewardConfig


def read_sections(config: ml_collections.ConfigDict) -> GFlowNetSections:
    """All of them; the task's own and the evaluator's are read where those are made.

    Raises:
        ValueError: a section, a field or a value that is not as it must be, named `section.field`.
    """
    run = top_level(GFlowNetRunConfig, config)
    settings = section(GFlowNetConfig, config, "gflownet")
    if settings.discovery_steps >= run.steps:
        raise ValueError(
            f"gflownet.discovery_steps is {settings.discovery_steps}; it must be less than steps, {run.steps}"
        )
    learning = run.steps - settings.discovery_steps
    return GFlowNetSections(
        run=run,
        model=section(BaseModelConfig, config, "model"),
        mesh=section(MeshConfig, config, "mesh"),
        lora=section(LoraConfig, config, "lora"),
        gflownet=settings,
        objective=read_objective(config, settings.samples),
        optimizer=section(OptimizerConfig, config, "optimizer", total_steps=learning),
        reward=section(RewardConfig, config, "reward"),
    )


def read_objective(config: ml_collections.ConfigDict, samples: int) -> Objective:
    """The objective, for N samples a query."""
    values = section(ObjectiveConfig, config, "objective")
    if values.terms.get("vargrad") and samples < 2:
        raise ValueError(f"gflownet.samples is {samples}; objective.terms.vargrad needs 2 or more")
    terms = tuple((name, float(weight)) for name, weight in values.terms.items() if weight)
    return Objective(terms, values.normalization, values.subtb_lambda, values.huber, samples)
