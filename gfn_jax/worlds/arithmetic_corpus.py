"""The synthetic corpus that a tiny base model for arithmetic is pretrained on.

A document is a run of worked examples. Where all of them are of one style (`coherent`), a model learns to go on in the
style it is shown; where each has its own, demonstrations tell it little:

    Question: 3 + 4 - 2 = ? Answer: 3 + 4 = 7, 7 - 2 = 5. The answer is 5.

    chain      the right chain                               3 + 4 = 7, 7 - 2 = 5
    backward   right too: the later operands from the last   3 - 2 = 1, 1 + 4 = 5
    corrupted  the chain with one slip of the pen in it      3 + 4 = 7, 9 - 2 = 7
    shuffled   the right chain's steps in another order      7 - 2 = 5, 3 + 4 = 7
    adjacent   neighbours combined, nothing carried over     3 + 4 = 7, 4 - 2 = 2
    repeat     the expression said again                     3 + 4 - 2
    direct     only a number                                 5

Every step has the calculator's result, and after steps the stated answer is the last result, right or not;
after `repeat` and `direct` it is right with a chance that the configuration sets. The weights of the styles
make the base as imperfect as is wanted. All questions come from pretraining's room (`arithmetic_splits`), so
the corpus holds no question of the task's own splits.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from gfn_jax.sections import Count, Natural, Nonnegative, Share
from gfn_jax.worlds.arithmetic_examples import apply, question_of
from gfn_jax.worlds.arithmetic_splits import room_of

# (sign, digit) of every operand; the first one's sign is "+" and not written.
Terms = list[tuple[str, int]]
Step = tuple[int, str, int]


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """What the corpus is made of; weights are relative.

    Attributes:
        chain, backward, corrupted, shuffled, adjacent, repeat, direct: weight of this style.
        wrong_answer: probability that the answer after `repeat` or `direct` is another number.
        coherent: probability that a document keeps the style of its first example.
        operands: (number of operands, weight), drawn for every example.
        examples: examples in a document.
        documents: documents in the corpus.
        seq_length: tokens in a row of `token_rows`.
        seed: of the whole corpus; document i depends on it and on i alone.
    """

    chain: Nonnegative = 4.0
    backward: Nonnegative = 0.0
    corrupted: Nonnegative = 1.5
    shuffled: Nonnegative = 0.0
    adjacent: Nonnegative = 1.5
    repeat: Nonnegative = 1.5
    direct: Nonnegative = 0.5
    wrong_answer: Share = 0.5
    coherent: Share = 1.0
    operands: tuple[tuple[int, float], ...] = ((3, 0.35), (4, 0.35), (5, 0.2), (6, 0.1))
    examples: Count = 6
    documents: Count = 50_000
    seq_length: Count = 256
    seed: Natural = 0

    def __post_init__(self):
        weights = self.style_weights()
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"style weights must not be negative, nor all zero, got {dict(zip(STYLES, weights))}")
        for name in ("wrong_answer", "coherent"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability, got {getattr(self, name)}")
        if not self.operands or any(number < 3 or weight <= 0 for number, weight in self.operands):
            raise ValueError(f"operands must be (number >= 3, weight > 0) pairs, got {self.operands}")
        if min(self.examples, self.documents, self.seq_length) < 1:
            raise ValueError("examples, documents and seq_length must each be at least 1")

    def style_weights(self) -> tuple[float, ...]:
        """The weights in the order of `STYLES`."""
        return tuple(getattr(self, style) for style in STYLES)


def documents(config: CorpusConfig) -> Iterator[str]:
    """The corpus, a document at a time; every document ends with a newline."""
    return (document(config, index)[1] for index in range(config.documents))


def document(config: CorpusConfig, index: int) -> tuple[str, str]:
    """Document `index` of the corpus and the style of its first example, as (style, text)."""
    rng = random.Random(f"arithmetic corpus {config.seed} {index}")  # seeded by the text's SHA-512
    (first,) = rng.choices(STYLES, config.style_weights())
    styles = [first] * config.examples
    if config.coherent < 1 and rng.random() >= config.coherent:
        styles[1:] = rng.choices(STYLES, config.style_weights(), k=config.examples - 1)
    numbers, weights = zip(*config.operands)
    lines = []
    for style, count in zip(styles, rng.choices(numbers, weights, k=config.examples)):
        terms = _pretraining_terms(rng, count)
        completion, answer = _solve(rng, style, terms, config.wrong_answer)
        lines.append(f"{question_of(_text(terms))} {completion}. The answer is {answer}.\n")
    return first, "".join(lines)


def token_rows(
    config: CorpusConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Int[np.ndarray, "N S"], Bool[np.ndarray, "N S"]]:
    """The corpus as token ids, one document a row from column 0: cut at `seq_length`, or padded on the right.

    Returns:
        ids (int32) and the mask of the columns that are no padding, both [documents, seq_length].

    Raises:
        ValueError: the tokenizer has no padding token, or cannot write a document down exactly.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token")
    ids = np.full((config.documents, config.seq_length), tokenizer.pad_token_id, np.int32)
    mask = np.zeros(ids.shape, bool)
    texts = documents(config)
    for start in range(0, config.documents, 1_000):  # batches bound the memory that Python lists take
        batch = list(itertools.islice(texts, 1_000))
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        if tokenizer.decode(encoded[0]) != batch[0]:
            raise ValueError(f"the tokenizer does not give a document back as it was: {batch[0]!r:.80}")
        for row, tokens in enumerate(encoded, start):
            length = min(len(tokens), config.seq_length)
            ids[row, :length] = tokens[:length]
            mask[row, :length] = True
    return ids, mask


def _corrupted(rng: random.Random, terms: Terms) -> list[Step]:
    """One slip: an operand misread or skipped, an operator turned round, or a result carried on wrongly."""
    place = rng.randrange(1, len(terms))
    before, (sign, digit), after = terms[:place], terms[place], terms[place + 1 :]
    slip = rng.choice(["operand", "operator", "skip", "carry"])
    if slip == "carry":
        error = rng.choice([-3, -2, -1, 1, 2, 3])
        steps = _steps(terms)
        return steps[: place - 1] + [(left + error, op, right) for left, op, right in steps[place - 1 :]]
    if slip == "skip":
        return _steps(before + after)
    if slip == "operand":
        return _steps([*before, (sign, _other_digit(rng, digit)), *after])
    return _steps([*before, ("-" if sign == "+" else "+", digit), *after])


def _shuffled(rng: random.Random, terms: Terms) -> list[Step]:
    steps = _steps(terms)
    order = list(range(len(steps)))
    while order == sorted(order):
        rng.shuffle(order)
    return [steps[place] for place in order]


def _adjacent(rng: random.Random, terms: Terms) -> list[Step]:
    del rng
    return [(left, sign, right) for (_, left), (sign, right) in itertools.pairwise(terms)]


# The styles that call the calculator.
CHAINS: dict[str, Callable[[random.Random, Terms], list[Step]]] = {
    "chain": lambda rng, terms: _steps(terms),
    "backward": lambda rng, terms: _steps([terms[0], *reversed(terms[1:])]),
    "corrupted": _corrupted,
    "shuffled": _shuffled,
    "adjacent": _adjacent,
}
STYLES = (*CHAINS, "repeat", "direct")


def _solve(rng: random.Random, style: str, terms: Terms, wrong_answer: float) -> tuple[str, int]:
    """The completion in a style, without its leading space, and the answer that is stated after it."""
    if style in CHAINS:
        steps = CHAINS[style](rng, terms)
        results = [apply(*step) for step in steps]
        written = [f"{left} {sign} {digit} = {r}" for (left, sign, digit), r in zip(steps, results)]
        return ", ".join(written), results[-1]
    if rng.random() < wrong_answer:  # the question is misread
        place = rng.randrange(len(terms))
        sign, digit = terms[place]
        answered = [*terms[:place], (sign, _other_digit(rng, digit)), *terms[place + 1 :]]
    else:
        answered = terms
    answer = sum(digit if sign == "+" else -digit for sign, digit in answered)
    return (_text(terms) if style == "repeat" else str(answer)), answer


def _pretraining_terms(rng: random.Random, count: int) -> Terms:
    """A random expression of pretraining's room."""
    while True:
        terms = [("+" if not place or rng.random() < 0.5 else "-", int(10 * rng.random())) for place in range(count)]
        if room_of(_text(terms)) == "pretraining":
            return terms


def _text(terms: Terms) -> str:
    return " ".join([str(terms[0][1]), *(f"{sign} {digit}" for sign, digit in terms[1:])])


def _steps(terms: Terms) -> list[Step]:
    """The calculator calls that add the terms up from the left."""
    total = terms[0][1]
    steps = []
    for sign, digit in terms[1:]:
        steps.append((total, sign, digit))
        total = apply(total, sign, digit)
    return steps


def _other_digit(rng: random.Random, digit: int) -> int:
    return (digit + rng.randrange(1, 10)) % 10
