"""What `python -m gfn_jax.certify` does: a run's posterior, an adapter, and how far the two are apart."""

import dataclasses
import json
import logging
import pathlib

import jax
import ml_collections

from gfn_jax.commands.sampling import read_adapter
from gfn_jax.evaluation.certify import Estimator
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.tensor_files import resolve
from gfn_jax.policy.head import Head
from gfn_jax.runs.certifying import CertificateConfig, Certifier
from gfn_jax.runs.config import PolicyRun, read
from gfn_jax.runs.defaults import policy_config
from gfn_jax.runs.policy import policy_parts
from gfn_jax.runs.saved import SavedRun, read_run, restore, restore_adapter
from gfn_jax.runs.weights import load_base
from gfn_jax.samplers.smc import SMC
from gfn_jax.samplers.twists import Answer, Flow, NoTwist, Twist, Value
from gfn_jax.sections import LOOKING
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes

TWISTS: dict[str, type[NoTwist] | type[Answer] | type[Flow]] = {"unit": NoTwist, "answer": Answer, "flow": Flow}
# What a run's config.json need not have.
UNSAVED = {*LOOKING, "report", "certificate", "start", "asynchronous"}
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure: the command's flags (see `gfn_jax/commands/certify.py`)."""

    workdir: str
    step: str = "best"
    adapter: str | None = None
    model: str | None = None
    split: str | None = None
    out: str | None = None
    queries: int = 8
    samples: int = 1024
    proposals: int = 16_384
    exact: int = 400
    seed: int = 0
    particles: int = 64
    repeats: int = 16
    twist: str = "none"


def certify(settings: Settings) -> str:
    """Measures, and returns what a person reads.

    Raises:
        ValueError, OSError: what is wrong with the settings or the files, in one line.
    """
    for name, least in (
        ("queries", 1),
        ("samples", 1),
        ("proposals", 0),
        ("exact", 1),
        ("particles", 1),
        ("repeats", 1),
    ):
        if getattr(settings, name) < least:
            raise ValueError(f"--{name} must be at least {least}, not {getattr(settings, name)}")
    saved = read_run(pathlib.Path(settings.workdir))
    config = policy_run(saved)
    folder = resolve(model_folder(settings.model or saved.base))
    mesh = meshes.use_mesh(config.mesh)
    model_type, shape = read_config(folder)
    _log.info("preparing the task %s", config.values.task)
    parts = policy_parts(config, shape, load_tokenizer(folder), mesh)
    if parts.host_reward is not None:
        raise ValueError("reward.function is asked on the host, where a certificate has no say")
    split, temperature = settings.split or config.entry.certified, config.sampling.target_temperature
    measured = CertificateConfig(settings.queries, settings.samples, settings.proposals, settings.exact, settings.seed)
    certifier = Certifier(parts.task, split, parts.reward, temperature, measured)
    try:
        parts.task.queries(split)
    except (KeyError, ValueError) as error:
        raise ValueError(f"task {config.values.task} has no split {split!r}") from error
    _log.info("reading the base %s", settings.model or saved.base)
    base = load_base(folder, config.model.dtype, mesh, config.model.quantize)
    policy, name = adapted(settings, saved, base, shape, model_type)
    other = None
    if settings.twist != "none":
        twist = make_twist(settings, saved, shape)
        other = Estimator(SMC(certifier.target, twist), settings.particles, settings.repeats)
    _log.info("certifying %s on %d queries of %s", name, settings.queries, split)
    certificate = certifier(policy, other)
    target = f"R^(1/{temperature:g})" if temperature != 1 else "R"
    title = f"{name} against {target} of {config.values.task}, queries 0 to {len(certificate.exact) - 1} of {split}"
    if settings.out is not None and jax.process_index() == 0:
        found = {**dataclasses.asdict(settings), "policy": name, "split": split, "temperature": temperature}
        pathlib.Path(settings.out).write_text(json.dumps({**found, **certificate.as_dict()}, indent=1) + "\n")
    return f"{title}\n\n{certificate.page()}"


def policy_run(saved: SavedRun) -> PolicyRun:
    """The run's config, read as it was when it was trained.

    Raises:
        ValueError: it is no run of a policy, or of another version of this library.
    """
    defaults = policy_config("any")
    missing = {name: defaults.get_ref(name) for name in UNSAVED - saved.config.keys()}
    run = read(ml_collections.ConfigDict({**missing, **saved.config}))
    if not isinstance(run, PolicyRun):
        raise ValueError(f"the run in {saved.folder} trains no policy: there is no posterior to compare it with")
    return run


def adapted(
    settings: Settings, saved: SavedRun, base: LanguageModel, shape: ModelConfig, model_type: str
) -> tuple[LanguageModel, str]:
    """The policy that is measured, and what it is called."""
    if settings.adapter == "none":
        return base, "the base"
    if settings.adapter is not None:
        lora, _ = read_adapter(settings.adapter, shape, model_type, settings.model or saved.base)
        return base.adapted(lora), settings.adapter
    step = saved.choose(settings.step)
    return base.adapted(restore_adapter(saved, step, shape)), f"step {step} of {saved.folder}"


def make_twist(settings: Settings, saved: SavedRun, shape: ModelConfig) -> Twist:
    """What unfinished rows are worth.

    Raises:
        ValueError: a learnt one is asked for, and the run has learnt none.
    """
    if settings.twist != "value":
        return TWISTS[settings.twist]()
    if saved.config["algorithm"] != "ctl":
        method = saved.config["algorithm"]
        raise ValueError(f"--twist=value needs a run of algorithm ctl; the one in {saved.folder} is of {method}")
    abstract = jax.eval_shape(lambda: Head.init(jax.random.key(0), shape.width))
    found = restore(saved, saved.choose(settings.step), {"value": dict(vars(abstract))})["value"]
    return Value(Head(**found), saved.config["ctl"]["value_rate"])
