"""What `python -m gfn_jax.sample` does, in parts: read a policy, encode prompts, draw and weigh a batch.

The policy is base and adapter; the reward is the base alone. For a completion Z of prompt X

    log q = sum over Z's own tokens and the stop of log q(token | what precedes it)
    log R = log p_LM(Z Y | context X),  with Y the answer, or the stop where there is none,

both at temperature 1 whatever Z was drawn at; log q is under the constraint, and a tool's tokens are no actions of it.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gfn_jax.environments import Calculator, NoTool
from gfn_jax.interfaces import Environment
from gfn_jax.models.adapters import load_adapter
from gfn_jax.models.checkpoint import load_model, read_config
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import Lora, LoraConfig, init_lora
from gfn_jax.models.tensor_files import read_json, resolve
from gfn_jax.policy.constraint import Constraint, make_constraint
from gfn_jax.policy.rollout import rollout
from gfn_jax.policy.score import score
from gfn_jax.rewards import PosteriorReward
from gfn_jax.text.batching import pad_left, pad_right
from gfn_jax.text.joining import decode_after, encode_answer, encode_prompt, joining_difference
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.text.tokens import allowed_ids, encode_after, stop_token
from gfn_jax.types import Params, Query, Rollout, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CALCULATOR_STOP = "."
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to sample, and how: the command's flags (see `gfn_jax/sample.py`)."""

    model: str
    prompts: tuple[str, ...]
    adapter: str | None = None
    samples: int = 1
    temperature: float = 1.0
    min_length: int = 0
    max_length: int = 32
    stop: str | None = None
    characters: str | None = None
    calculator: bool = False
    max_abs_value: int = 99
    answer: str | None = None
    context: str | None = None
    batch: int = 8
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        if not self.prompts:
            raise ValueError("no prompt; write --prompt=TEXT, or --prompts=FILE with one a line")
        if min(self.samples, self.batch) < 1 or self.temperature < 0:
            raise ValueError("samples and batch must be at least 1, and the temperature at least 0")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion.

    Attributes:
        prompt: X.
        completion: Z, a tool's tokens included, without its stop.
        log_q: of Z and its stop under the policy, in nats.
        log_r: of Z and the answer (or the stop) under the base, in nats.
        length: tokens of Z.
        finished: the policy ended it; false where the maximum length did.
    """

    prompt: str
    completion: str
    log_q: float
    log_r: float
    length: int
    finished: bool


def sample(settings: Settings) -> Iterator[list[Sample]]:
    """Completions batch by batch, `settings.samples` of every prompt, in the prompts' order.

    Everything is checked before the first batch is asked for.

    Raises:
        ValueError, OSError: what is wrong with the settings or the files, in one line.
    """
    folder = resolve(model_folder(settings.model))
    model_type, config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    constraint, environment = make_world(settings, tokenizer, config.vocab_size)
    query = make_query(settings, tokenizer, constraint.stop_id)
    context = None if settings.context is None else to_context(tokenizer, settings.context)
    check_query(config, query, context, settings.max_length)
    lora = None if settings.adapter is None else read_adapter(settings.adapter, config, model_type)
    _, params = load_model(folder, jnp.dtype(settings.dtype))
    draw = make_draw(config, PosteriorReward(config, context), params, lora, constraint, environment, settings)
    return batches(settings, tokenizer, query, draw)


def make_world(
    settings: Settings, tokenizer: "PreTrainedTokenizerFast", vocab_size: int
) -> tuple[Constraint, Environment]:
    """What may be written, how long it may get, and the tool."""
    stop = settings.stop or (CALCULATOR_STOP if settings.calculator else tokenizer.eos_token)
    if stop is None:
        raise ValueError("the tokenizer has no end-of-text token; name the stop, for instance --stop=.")
    environment: Environment = NoTool()
    calls, room = None, 0
    if settings.calculator:
        environment = calculator = Calculator.from_tokenizer(tokenizer, max_abs_value=settings.max_abs_value)
        known = np.asarray(calculator.triggers)[:vocab_size]
        calls, room = np.pad(known, (0, vocab_size - len(known))), calculator.max_result_tokens
    ids = None if settings.characters is None else allowed_ids(tokenizer, settings.characters, stop)
    lengths = {"max_length": settings.max_length, "min_length": settings.min_length}
    stop_id = stop_token(tokenizer, stop)
    return make_constraint(vocab_size, stop_id, **lengths, token_ids=ids, opens_call=calls, call_room=room), environment


def make_query(settings: Settings, tokenizer: "PreTrainedTokenizerFast", stop_id: int) -> Query:
    """All prompts, padded to one length, so that every batch has one shape."""
    pad_id = stop_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    prompts = [encode_prompt(tokenizer, text) for text in settings.prompts]
    contexts = prompts
    if settings.context is not None:
        contexts = [encode_after(tokenizer, settings.context, text) for text in settings.prompts]
    answers = [[stop_id]] * len(prompts)
    if settings.answer is not None:
        answers = [encode_answer(tokenizer, text, settings.answer) for text in settings.prompts]
    return Query(
        example_id=jnp.arange(len(prompts)),
        prompt=pad_left(prompts, pad_id),
        context=pad_left(contexts, pad_id),
        answer=pad_right(answers, pad_id),
    )


def to_context(tokenizer: "PreTrainedTokenizerFast", text: str) -> Tokens:
    """[1, D]: the reward's few-shot text."""
    return pad_left([encode_prompt(tokenizer, text)], 0)


def check_query(config: ModelConfig, query: Query, context: Tokens | None, max_length: int) -> None:
    """Raises ValueError where the model has no such token, or not as many positions."""
    largest = max(int(jnp.max(tokens.ids)) for tokens in (query.prompt, query.context, query.answer))
    if largest >= config.vocab_size:
        raise ValueError(f"the tokenizer writes token {largest}; the model has {config.vocab_size}: they do not belong")
    shots = 0 if context is None else context.ids.shape[1]
    texts = max(query.prompt.ids.shape[1], shots + query.context.ids.shape[1])
    needed = texts + max_length + query.answer.ids.shape[1]
    if needed > config.max_positions:
        raise ValueError(
            f"context, prompt, {max_length} tokens and answer take {needed} positions; the model has "
            f"{config.max_positions}: lower max_length or shorten the texts"
        )


def read_adapter(name: str, config: ModelConfig, model_type: str) -> Lora:
    """The adapter of a PEFT folder, or of the newest checkpoint in a run's workdir.

    Raises:
        ValueError: neither of them, damaged, or made for another base.
    """
    folder = resolve(name)
    if (folder / "adapter_config.json").is_file():
        return load_adapter(folder, config, model_type)[1]
    if (folder / "checkpoints").is_dir():
        return restore_adapter(folder, config)
    raise ValueError(f"{folder} is no adapter: it has neither adapter_config.json (PEFT) nor checkpoints (a run)")


def restore_adapter(workdir: pathlib.Path, config: ModelConfig) -> Lora:
    """The adapter alone out of a run's newest checkpoint; optimizer and buffer are not read.

    Raises:
        ValueError: the run trained none, saved none, or trained it on a base of another shape.
    """
    import orbax.checkpoint as ocp  # slow to import, and wanted for this only

    run = read_json(workdir, "config.json")
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    if "lora" not in run or not steps:
        raise ValueError(f"the run in {workdir} has saved no adapter")
    lora = LoraConfig(**{**run["lora"], "targets": tuple(run["lora"]["targets"])})
    abstract = jax.eval_shape(lambda: init_lora(jax.random.key(0), config, lora))
    wanted = {"trainable": {"lora": {"layers": abstract.layers, "head": abstract.head}}}
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    path = workdir.absolute() / "checkpoints" / str(max(steps)) / "state"
    arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=on_host, partial_restore=True)
    try:
        saved = ocp.PyTreeCheckpointer().restore(path, args=arguments)["trainable"]["lora"]
    except Exception as error:  # whatever a damaged file makes the libraries raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the checkpoint {path.parent} cannot be read: {reason}") from error
    for leaf, found in zip(jax.tree.leaves(wanted), jax.tree.leaves(saved), strict=True):
        if leaf.shape != found.shape:
            raise ValueError(f"the run in {workdir} has another base: {found.shape} where this one needs {leaf.shape}")
    return jax.tree.map(jnp.asarray, Lora(layers=saved["layers"], head=saved["head"], scale=lora.scale))


Draw = Callable[[Query, jax.Array], tuple[Rollout, Float[Array, " B"], Float[Array, " B"]]]


def make_draw(
    config: ModelConfig,
    reward: PosteriorReward,
    params: Params,
    lora: Lora | None,
    constraint: Constraint,
    environment: Environment,
    settings: Settings,
) -> Draw:
    """The compiled part: from Q queries and a key to B = Q * N completions, their log q and their log R."""

    @jax.jit
    def draw(params, lora, prepared, constraint, environment, query, key, temperature):
        rows = jnp.full(query.example_id.shape[0] * settings.samples, temperature)
        drawn = rollout(config, params, lora, query.prompt, constraint, environment, key, rows, rows * 0)
        log_q = score(config, params, lora, query.prompt, drawn, constraint).log_pf.sum(1)
        log_r = reward.log_reward(params, prepared, query, drawn)
        return drawn, log_q, jnp.take_along_axis(log_r, drawn.token_mask.sum(1)[:, None], axis=1)[:, 0]

    prepared = jax.jit(reward.prepare)(params)
    temperature = jnp.float32(settings.temperature)
    return lambda query, key: draw(params, lora, prepared, constraint, environment, query, key, temperature)


def batches(
    settings: Settings, tokenizer: "PreTrainedTokenizerFast", query: Query, draw: Draw
) -> Iterator[list[Sample]]:
    """Draws batch after batch; the last one is filled up with its last prompt and cut."""
    count, root = len(settings.prompts), jax.random.key(settings.seed)
    batch = min(settings.batch, count)
    for number, begin in enumerate(range(0, count, batch)):
        index = np.minimum(np.arange(begin, begin + batch), count - 1)
        part = jax.tree.map(lambda x, index=index: x[index], query)
        drawn = jax.tree.map(np.asarray, draw(part, jax.random.fold_in(root, number)))
        kept = min(batch, count - begin) * settings.samples
        yield describe(settings, tokenizer, jax.tree.map(np.asarray, part), drawn, kept)


def describe(settings: Settings, tokenizer, query: Query, drawn, kept: int) -> list[Sample]:
    """The first `kept` rows as text; says once a batch where their tokens are not those of the joined text."""
    rollouts, log_q, log_r = drawn
    samples, differences = [], []
    for row in range(kept):
        place = row // settings.samples
        prompt, answer = (part.ids[place][part.mask[place]].tolist() for part in (query.prompt, query.answer))
        length = int(rollouts.token_mask[row].sum())
        ids = rollouts.completion[row, :length].tolist()
        text = settings.prompts[int(query.example_id[place])]
        completion = decode_after(tokenizer, prompt, ids)
        parts = encode_after(tokenizer, "", text) + ids + ([] if settings.answer is None else answer)
        difference = joining_difference(tokenizer, parts, text + completion + (settings.answer or ""))
        differences += [] if difference is None else [difference]
        finished = length < rollouts.completion.shape[1] - 1
        samples.append(Sample(text, completion, float(log_q[row]), float(log_r[row]), length, finished))
    if differences:
        _log.warning(
            "%d of %d samples are tokenised otherwise than their joined text: %s",
            len(differences),
            kept,
            differences[0],
        )
    return samples
