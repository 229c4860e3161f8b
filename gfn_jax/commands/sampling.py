"""What `python -m gfn_jax.sample` does, in parts: read a policy, encode prompts, draw and weigh a batch.

The policy is base and adapter; the reward is the base alone. For a completion Z of prompt X

    log q = sum over Z's own tokens and the stop of log q(token | what precedes it)
    log R = log p_LM(Z Y | context X),  with Y the answer, or the stop where there is none,

both at temperature 1 whatever Z was drawn at; log q is under the constraint, and a tool's tokens are no actions of it.
What the flags leave open (`bos`, `max_abs_value`) is as in the run that trained the adapter, else as the tokenizer
has it.
"""

import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gfn_jax.environments import CALL, LARGEST_BOUND, Calculator, NoTool
from gfn_jax.evaluation.rows import gather, parts
from gfn_jax.evaluation.scoring import log_policy
from gfn_jax.interfaces import Environment, Reward
from gfn_jax.models.adapter_settings import CONFIG
from gfn_jax.models.adapters import load_adapter
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import Lora
from gfn_jax.models.quantize import Kind
from gfn_jax.models.tensor_files import read_json, resolve
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.rewards import PosteriorReward
from gfn_jax.runs.weights import load_base
from gfn_jax.sections import Count, Natural, Range, SamplingTemperature, Seed, check
from gfn_jax.text.batching import pad_left, pad_right
from gfn_jax.text.joining import Bos, decode_after, encode_answer, encode_prompt, joining_difference
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.text.tokens import allowed_ids, encode_after, pad_token, stop_token
from gfn_jax.training import mesh as meshes
from gfn_jax.types import Query, Rollout, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gfn_jax.runs.saved import SavedRun

CALCULATOR_STOP = "."
NO_PROMPT = "no prompt; write --prompt=TEXT, or --prompts=FILE with one a line"
LARGEST = 99  # operand and result of the calculator, where nobody says otherwise and the tokenizer can
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to sample, and how: the command's flags (see `gfn_jax/commands/sample.py`)."""

    model: str
    prompts: tuple[str, ...]
    adapter: str | None = None
    samples: Count = 1
    temperature: SamplingTemperature = 1.0
    min_length: Natural = 0
    max_length: Count = 32
    stop: str | None = None
    characters: str | None = None
    calculator: bool = False
    max_abs_value: Annotated[int, Range(1, LARGEST_BOUND)] | None = None
    answer: str | None = None
    context: str | None = None
    batch: Count = 8
    seed: Seed = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    bos: Bos = "auto"
    quantize: Kind = "none"
    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        check(Settings, vars(self), "--")


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
    if not settings.prompts:
        raise ValueError(NO_PROMPT)
    mesh = meshes.use_mesh(meshes.MeshConfig(settings.data, settings.fsdp, settings.tensor))
    folder = resolve(model_folder(settings.model))
    model_type, config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    lora, run = None, None
    if settings.adapter is not None:
        lora, run = read_adapter(settings.adapter, config, model_type, settings.model)
        lora = meshes.place(lora, meshes.shardings(lora, mesh))
    if settings.bos == "auto" and run is not None:
        # Tasks encode their prompts without a begin-of-text, and a policy knows only what it was trained on.
        settings = dataclasses.replace(settings, bos="no")
    rules = make_rules(settings, tokenizer, config.vocab_size, run)
    query = make_query(settings, tokenizer, rules.constraint.stop_id)
    context = None if settings.context is None else to_context(settings, tokenizer, settings.context)
    check_query(config, query, context, settings.max_length)
    policy = load_base(folder, settings.dtype, mesh, settings.quantize).adapted(lora)
    draw = make_draw(policy, PosteriorReward(context), rules, settings)
    return batches(settings, tokenizer, query, draw, policy)


def make_calculator(settings: Settings, tokenizer: "PreTrainedTokenizerFast", run: "SavedRun | None") -> Calculator:
    """Reckons as far as asked for, or as in the run, or as suits the tokenizer, and says so if it was not asked for."""
    bound, reason = settings.max_abs_value, None
    if bound is None and run is not None and "max_abs_value" in run.task:
        bound, reason = int(run.task["max_abs_value"]), f"as in {run.folder}"
    elif bound is None:
        bound = largest_number(tokenizer)
        reason = "the default" if bound == LARGEST else "as the tokenizer writes larger ones in more tokens"
    calculator = Calculator.from_tokenizer(tokenizer, max_abs_value=bound)
    if reason is not None:
        _log.info("calculator: operands and results up to %d, %s", bound, reason)
    return calculator


def largest_number(tokenizer: "PreTrainedTokenizerFast", most: int = LARGEST) -> int:
    """The largest n <= `most` up to which numbers take as many tokens as others of as many digits, signs apart.

    A vocabulary may have the numbers up to 60 as tokens: then 61, in pieces, is none that its model has seen.
    """
    expected: dict[tuple[str, int], int] = {}

    def usual(number: int) -> bool:
        for sign in ("", "-"):
            length = len(encode_after(tokenizer, "1 - 2 =", f" {sign}{number}"))
            if expected.setdefault((sign, len(str(number))), length) != length:
                return False
        return True

    return sum(1 for _ in itertools.takewhile(usual, range(1, most + 1)))


def make_rules(
    settings: Settings, tokenizer: "PreTrainedTokenizerFast", vocab_size: int, run: "SavedRun | None" = None
) -> Rules:
    """What may be written, how long it may get, and the tool, which is set up as in `run`, the adapter's."""
    stop = settings.stop or (CALCULATOR_STOP if settings.calculator else tokenizer.eos_token)
    if stop is None:
        raise ValueError("the tokenizer has no end-of-text token; name the stop, for instance --stop=.")
    environment: Environment = make_calculator(settings, tokenizer, run) if settings.calculator else NoTool()
    calls, room = tool_columns(environment, vocab_size)
    ids = None if settings.characters is None else allowed_ids(tokenizer, settings.characters, stop, CALL)
    lengths = {"max_length": settings.max_length, "min_length": settings.min_length}
    stop_id = stop_token(tokenizer, stop)
    constraint = make_constraint(vocab_size, stop_id, **lengths, token_ids=ids, opens_call=calls, call_room=room)
    return Rules(constraint, environment)


def tool_columns(environment: Environment, vocab_size: int) -> tuple[Bool[np.ndarray, " V"] | None, int]:
    """Which ids hand over to the tool, None for none, and how many tokens it may then write."""
    if not isinstance(environment, Calculator):
        return None, 0
    known = np.asarray(environment.triggers)[:vocab_size]
    return np.pad(known, (0, vocab_size - len(known))), environment.max_result_tokens


def make_query(settings: Settings, tokenizer: "PreTrainedTokenizerFast", stop_id: int) -> Query:
    """All prompts, padded to one length, so that every batch has one shape."""
    pad_id = pad_token(tokenizer, stop_id)
    prompts = [encode_prompt(tokenizer, text, settings.bos) for text in settings.prompts]
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


def to_context(settings: Settings, tokenizer: "PreTrainedTokenizerFast", text: str) -> Tokens:
    """[1, D]: the reward's few-shot text."""
    return pad_left([encode_prompt(tokenizer, text, settings.bos)], 0)


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


def read_adapter(name: str, config: ModelConfig, model_type: str, base: str) -> "tuple[Lora, SavedRun | None]":
    """The adapter of a PEFT folder, or of the newest checkpoint in a run's workdir, and the run if it is one.

    Says so where the adapter names another base than `base`.

    Raises:
        ValueError: neither of them, damaged, or made for a base of another shape.
    """
    folder = resolve(name)
    if (folder / CONFIG).is_file():
        run, named = None, read_json(folder, CONFIG).get("base_model_name_or_path")
        lora = load_adapter(folder, config, model_type, base=model_folder(base))[1]
    elif (folder / "checkpoints").is_dir():
        from gfn_jax.runs.saved import read_run, restore_adapter  # with orbax, which is slow to import

        run = read_run(folder)
        named, lora = run.base, restore_adapter(run, run.choose("newest"), config)
    else:
        raise ValueError(f"{folder} is no adapter: it has neither {CONFIG} (PEFT) nor checkpoints (a run)")
    if named and not same_base(named, base):
        _log.warning("the adapter in %s was made for %s; --model is %s", folder, named, base)
    return lora, run


def same_base(one: str, other: str) -> bool:
    """Whether two names mean one base: equal, or the same folder."""
    return len({pathlib.Path(model_folder(name)).expanduser().resolve() for name in (one, other)}) == 1


Draw = Callable[[Query, jax.Array], tuple[Rollout, Float[Array, " B"], Float[Array, " B"]]]


def make_draw(policy: LanguageModel, reward: Reward, rules: Rules, settings: Settings) -> Draw:
    """The compiled part: from Q queries and a key to B = Q * N completions, their log q and their log R."""

    @jax.jit
    def draw(policy, prepared, rules, query, key, temperature):
        behavior = Behavior.at(temperature, query.example_id.shape[0] * settings.samples)
        drawn = rollout(policy, query.prompt, rules, behavior, key)
        log_q = log_policy(policy, query.prompt, drawn, rules)
        log_r = reward.log_reward(policy.base, prepared, query, drawn.stopping())
        return drawn, log_q, jnp.take_along_axis(log_r, drawn.token_mask.sum(1)[:, None], axis=1)[:, 0]

    prepared = jax.jit(reward.prepare)(policy.base)
    temperature = jnp.float32(settings.temperature)
    return lambda query, key: draw(policy, prepared, rules, query, key, temperature)


def batches(
    settings: Settings, tokenizer: "PreTrainedTokenizerFast", query: Query, draw: Draw, policy: LanguageModel
) -> Iterator[list[Sample]]:
    """Draws batch after batch; the last is filled up, and each that would not divide over the policy's devices."""
    root, first = jax.random.key(settings.seed), int(query.example_id[0])
    for number, (part, count) in enumerate(parts(query, settings.batch, policy)):
        drawn = gather(draw(part, jax.random.fold_in(root, number)))
        yield describe(settings, tokenizer, gather(part), drawn, count * settings.samples, first)


def describe(settings: Settings, tokenizer, query: Query, drawn, kept: int, first: int = 0) -> list[Sample]:
    """The first `kept` rows as text; says once a batch where their tokens are not those of the joined text.

    `first` is the number that the first of the settings' prompts has among the queries.
    """
    rollouts, log_q, log_r = drawn
    samples, differences = [], []
    for row in range(kept):
        place = row // settings.samples
        prompt, answer = (part.ids[place][part.mask[place]].tolist() for part in (query.prompt, query.answer))
        length = int(rollouts.token_mask[row].sum())
        ids = rollouts.completion[row, :length].tolist()
        text = settings.prompts[int(query.example_id[place]) - first]
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
