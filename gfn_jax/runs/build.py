"""From a ConfigDict to a run: the `build*` modules are the only readers of configuration."""

import pathlib

import ml_collections

from gfn_jax.runs.em import build_em
from gfn_jax.runs.policy import build_gflownet
from gfn_jax.runs.texts import LANGUAGE_MODELING
from gfn_jax.sections import RunConfig, check_secrets, top_level
from gfn_jax.training.loop import Run


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path, command: str = "") -> Run:
    """The run that a config describes, ready to be trained.

    Args:
        config: the whole of it; its `task` says what kind of run it is.
        workdir: where the run writes.
        command: what repeats the run, for its results.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the config, the model or the data, in one line.
    """
    top_level(RunConfig, config)  # what any run has: a config of another command is none of these
    check_secrets(config)
    if config.task in LANGUAGE_MODELING:
        return LANGUAGE_MODELING[config.task](config, workdir)
    if "em" in config and config.em.rounds:
        return build_em(config, workdir, command)
    return build_gflownet(config, workdir, command)
