"""What `python -m gfn_jax.export` does: an adapter out of a run's checkpoint, alone or merged into its base."""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from gfn_jax.models.checkpoint import load_model, read_config
from gfn_jax.models.export import Origin, export_run_adapter, export_run_model
from gfn_jax.models.hub import check_name, push
from gfn_jax.models.tensor_files import read_json, resolve, whole_folder
from gfn_jax.runs.ending import own_metrics
from gfn_jax.runs.saved import SavedRun, read_run, restore_adapter
from gfn_jax.text.loading import load_tokenizer, model_folder

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to export: the command's flags (see `gfn_jax/commands/export.py`)."""

    workdir: str
    out: str
    step: str = "newest"
    merged: bool = False
    model: str | None = None
    dtype: str | None = None
    command: str | None = None
    push_to_hub: str | None = None


def export(settings: Settings) -> str:
    """Writes the folder, uploads it where that is asked for, and returns what a person reads.

    Raises:
        ValueError, OSError: what is wrong with the settings, the files or the hub, in one line.
    """
    if settings.push_to_hub is not None:
        check_name(settings.push_to_hub)
    written = write(settings)
    if settings.push_to_hub is None or jax.process_index() != 0:
        return written
    return f"{written}\nOn the hub: {push(pathlib.Path(settings.out), settings.push_to_hub)}"


def write(settings: Settings) -> str:
    """Writes the folder, and returns where it is and how to sample it."""
    out = pathlib.Path(settings.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already, and is no empty folder; name another --out")
    run = read_run(pathlib.Path(settings.workdir))
    step = run.choose(settings.step)
    base = settings.model or run.base
    folder = resolve(model_folder(base))
    model_type, config = read_config(folder)
    lora = restore_adapter(run, step, config)  # which takes all processes
    if jax.process_index() != 0:
        return ""
    origin = describe(run, step, base, settings.command)
    if not settings.merged:
        export_run_adapter(out, config, run.lora, lora, model_type, origin)
        return f"The adapter of step {step} is in {out}; sample it with --model={base} --adapter={out}"
    if run.config["model"]["quantize"] != "none":
        _log.warning(
            "the adapter was trained on a base in %s; merged is the base as floats", run.config["model"]["quantize"]
        )
    tokenizer = load_tokenizer(folder)
    _, params = load_model(folder, jnp.dtype(settings.dtype or run.config["model"]["dtype"]))
    raw = read_json(folder, "config.json")
    special = {name: raw[name] for name in SPECIAL_IDS if name in raw}
    with whole_folder(out) as draft:
        export_run_model(draft, config, params, lora, model_type, origin, special)
        tokenizer.save_pretrained(draft)
    return f"The model of step {step} is in {out}, an ordinary Hugging Face folder; sample it with --model={out}"


def describe(run: SavedRun, step: int, base: str, command: str | None) -> Origin:
    """For the card; of `results.json` what was measured at this very step."""
    metrics: dict[str, Any] = {}
    if (run.folder / "results.json").is_file():
        results = read_json(run.folder, "results.json")
        if results.get("steps") == step:
            metrics, command = own_metrics(results), command or results.get("command")
        else:
            _log.warning(
                "results.json was measured at step %s; the card of step %d has none", results.get("steps"), step
            )
    unknown = f"python -m gfn_jax.launch --config=FILE  # the file, and the changes, that give {run.digest}"
    return Origin(base, run.config["task"], run.digest, metrics, command or unknown)
