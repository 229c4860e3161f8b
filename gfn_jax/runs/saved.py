"""What a run left in its workdir, read back: its config, its checkpoints, and the adapter in one of them."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import Lora, LoraConfig, init_lora
from gfn_jax.models.tensor_files import read_json
from gfn_jax.sections import section
from gfn_jax.training.checkpoint import check_digests, config_digest, read_facts
from gfn_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run that trained an adapter and saved it.

    Attributes:
        folder: the workdir.
        config: the run's configuration, as `config.json` holds it.
        steps: the steps that were saved, oldest first.
    """

    folder: pathlib.Path
    config: dict[str, Any]
    steps: tuple[int, ...]

    @property
    def base(self) -> str:
        """The name or folder of the base."""
        return self.config["model"]["path"]

    @property
    def task(self) -> dict[str, Any]:
        """The task's own section of the configuration; nothing where the task is a user's own, which may have any."""
        return self.config.get(self.config["task"], {})

    @property
    def digest(self) -> str:
        """The configuration's fingerprint."""
        return config_digest(self.config)

    @property
    def lora(self) -> LoraConfig:
        """The adapter's settings."""
        return section(LoraConfig, self.config, "lora")

    def choose(self, wanted: str) -> int:
        """The saved step that `newest`, `best` (by validation; of equals the newest) or a number names.

        Raises:
            ValueError: none of them, or a step that was not saved or has been let go.
        """
        if wanted == "newest":
            return self.steps[-1]
        if wanted == "best":
            return max(self.steps, key=lambda step: (self._score(step), step))
        if not wanted.isdecimal() or int(wanted) not in self.steps:
            there = ", ".join(map(str, self.steps))
            raise ValueError(f"the run in {self.folder} holds step {there}; {wanted!r} is none, nor newest or best")
        return int(wanted)

    def _score(self, step: int) -> float:
        try:
            return read_facts(self.folder / "checkpoints" / str(step))["score"]
        except (ValueError, OSError):  # a damaged one is not the best
            return -math.inf


def read_run(workdir: pathlib.Path) -> SavedRun:
    """The run that owns a workdir.

    Raises:
        ValueError: no such folder, no run of ours, one that trains no adapter, or one that has saved none yet.
    """
    config = read_json(workdir, "config.json")
    if not {"task", "model", "lora"} <= config.keys():
        raise ValueError(f"{workdir} is no run that trains an adapter: its config.json lacks task, model or lora")
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())
    if not steps:
        raise ValueError(f"the run in {workdir} has saved no adapter yet")
    return SavedRun(workdir, config, tuple(steps))


def restore_adapter(run: SavedRun, step: int, config: ModelConfig) -> Lora:
    """The adapter alone out of a checkpoint, onto the first device; optimizer and buffer are not read.

    Args:
        run: whose.
        step: one of `run.steps`.
        config: the base's shape.

    Raises:
        ValueError: the checkpoint is damaged, or the adapter fits a base of another shape.
    """
    lora = run.lora
    abstract = jax.eval_shape(lambda: init_lora(jax.random.key(0), config, lora))
    saved = restore(run, step, {"lora": {"layers": abstract.layers, "head": abstract.head}})["lora"]
    return Lora(layers=saved["layers"], head=saved["head"], scale=lora.scale)


def restore(run: SavedRun, step: int, wanted: PyTree) -> PyTree:
    """A part of what was trained out of a checkpoint, onto the first device.

    Args:
        run: whose.
        step: one of `run.steps`.
        wanted: nested dictionaries of shapes, as they are named in the checkpoint.

    Raises:
        ValueError: the checkpoint is damaged, lacks the part, or holds it in another shape.
    """
    wanted = {"trainable": wanted}
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    path = run.folder.absolute() / "checkpoints" / str(step) / "state"
    arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=on_host, partial_restore=True)
    try:
        facts, part = read_facts(path.parent), ocp.PyTreeCheckpointer().restore(path, args=arguments)
        check_digests(part, facts)
        saved = part["trainable"]
    except Exception as error:  # whatever a damaged file makes the libraries raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the checkpoint {path.parent} cannot be read: {reason}") from error
    for leaf, found in zip(jax.tree.leaves(wanted), jax.tree.leaves(saved), strict=True):
        if leaf.shape != found.shape:
            raise ValueError(f"the run in {run.folder} has another base: {found.shape}, where this needs {leaf.shape}")
    return jax.tree.map(jnp.asarray, saved)
