"""The self-test of `gfn doctor`: two training steps of the tiny model, one compiled program, on each device.

An adapter on the shipped model of numbers learns three texts that it finds odd. The first loss is the base's own, the
second depends on the first gradient; products are computed in float32 (on a TPU they are not otherwise), so that any
device agrees with the stored values but for rounding.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from gfn_jax.algorithms.language_model import Corpus, LanguageModeling
from gfn_jax.errors import first_line
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.text.documents import document_rows
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import Tokens

MODEL = "tiny-numbers"
TEXTS = ("7 is a random integer", "42 is drawn", "between 0 and 99")  # nothing that it has seen
EXPECTED = (5.827979, 5.634107)  # nats a token
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Result:
    """What a device has computed.

    Attributes:
        line: what a person reads.
        fault: what is wrong; None where nothing is.
    """

    line: str
    fault: str | None = None


def devices() -> list[jax.Device]:
    """Those of this process.

    Raises:
        RuntimeError: jax finds none.
    """
    return jax.local_devices()


def described(device: Any) -> str:
    """Its name, and its memory where it says."""
    memory = device.memory_stats() or {}
    known = [
        f"{memory[key] / 1e9:.1f} GB {name}"
        for key, name in (("bytes_limit", "in all"), ("bytes_in_use", "in use"))
        if key in memory
    ]
    return ", ".join([f"{device} ({device.platform}, {device.device_kind})", *known])


def losses(device: Any) -> tuple[float, float]:
    """The loss of each step, in nats a token."""
    folder = model_folder(MODEL)
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        shape, params = load_model(folder)
        rows = document_rows(TEXTS, load_tokenizer(folder), 32, end_of_document=True)
        documents = Tokens(jnp.asarray(rows.ids), jnp.asarray(rows.mask))
        order = jnp.zeros((2, 1), jnp.int32) + jnp.arange(len(TEXTS))
        corpus = Corpus(documents, documents.mask, order, jax.random.key(0), LanguageModel(shape, params))
        algorithm = LanguageModeling(shape, LoraConfig(rank=4, alpha=4.0, targets=("q", "v")))
        optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01, total_steps=4, decay="constant"))
        state = init_state(algorithm, optimizer, jax.random.key(0), corpus)
        step = jax.jit(make_step(algorithm, optimizer))
        state, first = step(state, corpus)
        _, second = step(state, corpus)
        return float(first["loss"]), float(second["loss"])


def check(device: Any) -> Result:
    """Two steps on a device, beside the stored losses."""
    began = time.monotonic()
    try:
        found = losses(device)
    except Exception as error:  # whatever a device makes the libraries raise
        return Result("failed", f"the self-test failed: {first_line(error)}")
    line = f"losses {found[0]:.6f} and {found[1]:.6f} nats a token, in {time.monotonic() - began:.1f} s"
    if not all(map(math.isfinite, found)):
        return Result(line, "the self-test's loss is not finite")
    if any(abs(one - other) > TOLERANCE for one, other in zip(found, EXPECTED, strict=True)):
        return Result(
            line, f"the self-test's losses are {found}, and should be {EXPECTED}: the arithmetic is not right"
        )
    return Result(line)
