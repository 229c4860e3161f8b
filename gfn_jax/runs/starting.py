"""The adapter that a policy begins with, where that is another run's and no fresh one: `config.start`.

Supervised fine-tuning first, say, and PPO or a GFlowNet from there. The base stays what it is, and so do the reward and
whatever the policy is held near to. What a workdir belongs to is the adapter itself, wherever it lies.
"""

import dataclasses
import hashlib
import logging
import math
import pathlib

from gfn_jax.models.adapter_settings import CONFIG
from gfn_jax.models.adapters import WEIGHTS, load_adapter
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import Lora, LoraConfig, check_targets
from gfn_jax.models.tensor_files import read_json
from gfn_jax.text.loading import model_folder

_log = logging.getLogger("gfn_jax")


def start_folder(start: str) -> pathlib.Path:
    """The PEFT folder that is meant: that one itself, or what the run in a workdir has left at its end.

    Raises:
        ValueError: neither of them.
    """
    folder = pathlib.Path(start).expanduser()
    for found in (folder, folder / "adapter"):
        if (found / CONFIG).is_file() and (found / WEIGHTS).is_file():
            return found
    raise ValueError(f"start is {start!r}; there is no adapter (PEFT), nor a run that has ended and left one")


def start_digest(folder: pathlib.Path) -> str:
    """Twelve hexadecimal digits of an adapter's contents."""
    contents = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        contents.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return contents.hexdigest()[:12]


def load_start(
    folder: pathlib.Path, wanted: LoraConfig, model: ModelConfig, model_type: str, base: pathlib.Path
) -> Lora:
    """The adapter in a PEFT folder, float32, on the first device; says so where it names another base.

    Args:
        folder: the adapter's.
        wanted: the run's own settings, which its shape and scale must be those of.
        model: the base's shape.
        model_type: the base's family.
        base: the base's folder.

    Raises:
        ValueError: it is damaged, was made for another base, or has another rank, scale or other targets.
    """
    check_targets(model, wanted.targets)
    found, lora = load_adapter(folder, model, model_type, base=base)
    pairs = [*lora.layers.values(), *([] if lora.head is None else [lora.head])]
    ranks = {pair["a"].shape[-1] for pair in pairs}
    same = math.isclose(found.scale, wanted.scale) and set(found.targets) == set(wanted.targets)
    if ranks != {wanted.rank} or not same:
        raise ValueError(
            f"start: the adapter in {folder} has rank {'/'.join(map(str, sorted(ranks)))}, scale {found.scale:g}, "
            f"targets {' '.join(found.targets)}; the config's lora has rank {wanted.rank}, scale {wanted.scale:g}, "
            f"targets {' '.join(wanted.targets)}: make them equal"
        )
    named = read_json(folder, CONFIG).get("base_model_name_or_path")
    if named and pathlib.Path(model_folder(named)).expanduser().resolve() != base.resolve():
        _log.warning("the adapter in %s, which the policy begins with, was made for %s", folder, named)
    return dataclasses.replace(lora, scale=wanted.scale)
