"""What every key of a config means: its value, what it may be, and what the dataclass of its section says of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gfn_jax.algorithms.language_model import Phase
from gfn_jax.algorithms.sampling import ExplorationConfig, ReplayConfig, SamplingConfig
from gfn_jax.models.config import BaseModelConfig, ModelConfig
from gfn_jax.models.lora import LoraConfig
from gfn_jax.objectives import Objective
from gfn_jax.runs.asynchronous import AsynchronousConfig
from gfn_jax.runs.certifying import CertificateConfig
from gfn_jax.runs.config import (
    DataConfig,
    EMConfig,
    FinetuningConfig,
    ObjectiveConfig,
    PerplexityConfig,
    PolicyConfig,
    PretrainingConfig,
)
from gfn_jax.runs.registry import ALGORITHMS, algorithm_entry, task_entry
from gfn_jax.runs.rewards import RewardConfig
from gfn_jax.sections import allowed, field_types, leaves, meanings
from gfn_jax.tasks.texts import TextConfig
from gfn_jax.training.mesh import MeshConfig
from gfn_jax.training.optimizer import OptimizerConfig
from gfn_jax.worlds.corpora import corpus_kind

# Section -> the dataclasses that say what its fields are; "" is the config itself. The last one's types count.
Classes = Mapping[str, tuple[type, ...]]


@dataclasses.dataclass(frozen=True)
class Key:
    """A value of a config.

    Attributes:
        name: section.field.
        value: as the config has it.
        kind: what it may be, in words.
        meaning: one line.
    """

    name: str
    value: Any
    kind: str
    meaning: str


def classes_of(config: Mapping[str, Any]) -> Classes:
    """The dataclasses of a run's sections.

    Raises:
        ValueError: a task or a corpus that is not there.
    """
    task = config["task"]
    if task == "pretrain":
        corpus = corpus_kind(config["corpus"]).config
        return {
            "": (PretrainingConfig,),
            "model": (ModelConfig,),
            "optimizer": (OptimizerConfig,),
            **{f"phases.{name}": (Phase, corpus) for name in config["phases"]},
        }
    trained: Classes = {
        "model": (BaseModelConfig,),
        "mesh": (MeshConfig,),
        "lora": (LoraConfig,),
        "optimizer": (OptimizerConfig,),
    }
    if task == "finetune":
        return {**trained, "": (FinetuningConfig,), "data": (TextConfig,), "evaluation": (PerplexityConfig,)}
    entry, methods = task_entry(task), [algorithm_entry(name) for name in ALGORITHMS]
    return {
        **trained,
        "": (PolicyConfig,),
        "data": (DataConfig,),
        "sampling": (SamplingConfig,),
        "exploration": (ExplorationConfig,),
        "replay": (ReplayConfig,),
        "objective": (ObjectiveConfig, Objective, ObjectiveConfig),
        "reward": (RewardConfig,),
        "certificate": (CertificateConfig,),
        "asynchronous": (AsynchronousConfig,),
        "em": (EMConfig,),
        "evaluation": (entry.evaluation,),
        entry.section: (entry.config,),
        **{method.section: (method.config,) for method in methods if method.section and method.config},
    }


def explained(config: Mapping[str, Any], classes: Classes) -> list[Key]:
    """The keys of a config, in its order; those of a mapping, `objective.terms.subtb`, have the mapping's meaning."""
    types = {name: {k: v for cls in known for k, v in field_types(cls).items()} for name, known in classes.items()}
    said = {name: meanings(*known) for name, known in classes.items()}
    found = []
    for section, field, rest, value in values_of(config, classes):
        name = ".".join(part for part in (section, field, rest) if part)
        kind = allowed(types[section][field], name) if field in types[section] else ""
        found.append(Key(name, value, kind, said[section].get(field, "")))
    return found


def values_of(config: Mapping[str, Any], classes: Classes) -> list[tuple[str, str, str, Any]]:
    """(section, field, the rest of the key, value) of each value."""
    found = []
    for key, value in leaves(config):
        section = max((one for one in classes if not one or key.startswith(f"{one}.")), key=len)
        field, _, rest = key.removeprefix(f"{section}." if section else "").partition(".")
        found.append((section, field, rest, value))
    return found
