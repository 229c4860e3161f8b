"""A GFlowNet step to be computed twice, as files: a base, an adapter, tokens and rules. Numpy alone.

A folder holds `base` (transformers' layout), `adapter` (PEFT's), `arrays.npz` and `problem.json`. Nothing is padded:
all prompts, contexts and answers of a problem are of one length, and in what is timed all completions are, too.
"""

import dataclasses
import json
import pathlib
import re

import numpy as np


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is sampled, rewarded and learnt in one step.

    Attributes:
        samples: N completions a query.
        dtype: of the base and of the arithmetic; the adapter is float32.
        min_length, max_length: tokens of a completion. A step that is timed samples `max_length`.
        call_room: tokens that the calculator may write after a call.
        largest: its largest operand and result, in absolute value; None without a calculator.
        strings: the texts of the first tokens of the vocabulary, for the calculator.
        prompt, context, answer: [Q, P], [Q, C], [Q, Y] tokens: what the policy reads, and what the reward's model reads
            before and after a completion.
        few_shot: [D] tokens before the context, the same in every step; may be none.
        token_ids: [A] that may be chosen, all of the vocabulary where there is no calculator.
        is_stop, opens_call: [A] which of them end a completion, and which call the calculator.
        results: [R, W] tokens of each result from -largest on, filled up with -1.
    """

    samples: int
    dtype: str
    min_length: int
    max_length: int
    call_room: int
    largest: int | None
    strings: list[str]
    prompt: np.ndarray
    context: np.ndarray
    answer: np.ndarray
    few_shot: np.ndarray
    token_ids: np.ndarray
    is_stop: np.ndarray
    opens_call: np.ndarray
    results: np.ndarray

    @property
    def rows(self) -> int:
        """B."""
        return len(self.prompt) * self.samples

    @property
    def horizon(self) -> int:
        """T: choices a row, the stop included."""
        return self.max_length + 1

    def save(self, folder: pathlib.Path) -> None:
        """Writes all but the weights."""
        fields = dataclasses.asdict(self)
        arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
        np.savez(folder / "arrays.npz", **arrays)
        rest = {name: value for name, value in fields.items() if name not in arrays}
        (folder / "problem.json").write_text(json.dumps(rest) + "\n")

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Problem":
        """Reads it back."""
        return cls(**json.loads((folder / "problem.json").read_text()), **np.load(folder / "arrays.npz"))

    def allowed(self, state: int, may_stop: np.ndarray) -> np.ndarray:
        """[B, A]: what each row may choose in a state, `may_stop` [B] being the tool's word on ending there."""
        last = state >= self.max_length
        stop = last | (may_stop & (state >= self.min_length))
        other = ~self.opens_call | (state + self.call_room < self.max_length)
        return np.where(self.is_stop, stop[:, None], other & (not last))


EXPRESSION = re.compile(r" *(?:- *)?\d+ *(?:[+-] *(?:- *)?\d+ *)+")
TERM = re.compile(r"(^|[+-]) *(-? *\d+) *")


class Tool:
    """The calculator, a text a row: after "=" it writes the value of the last two operands. Or no tool."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.texts = [""] * problem.rows
        self.pending: list[list[int]] = [[] for _ in self.texts]

    def forced(self) -> np.ndarray:
        """[B]: the token that the tool writes next, or -1."""
        return np.array([tokens[0] if tokens else -1 for tokens in self.pending])

    def may_stop(self) -> np.ndarray:
        """[B]: whether a row may end here: behind a number."""
        if self.problem.largest is None:
            return np.ones(len(self.texts), bool)
        return np.array([not p and t[-1:].isdigit() for t, p in zip(self.texts, self.pending, strict=True)])

    def step(self, tokens: np.ndarray) -> None:
        """[B]: what every row has been given."""
        if self.problem.largest is None:
            return
        for row, token in enumerate(tokens.tolist()):
            self.texts[row] += self.problem.strings[token]
            self.pending[row] = self.pending[row][1:]
            if self.texts[row].endswith("="):
                self.pending[row] = self.result(re.split(r"[,.\n=]", self.texts[row][:-1])[-1])

    def result(self, expression: str) -> list[int]:
        """The tokens of an expression's value; none where it has none."""
        largest = self.problem.largest
        assert largest is not None
        if not EXPRESSION.fullmatch(expression):
            return []
        terms = [(sign, int(number.replace(" ", ""))) for sign, number in TERM.findall(expression)]
        (_, left), (sign, right) = terms[-2:]
        value = left - right if sign == "-" else left + right
        if max(abs(value), *(abs(number) for _, number in terms)) > largest:
            return []
        return [token for token in self.problem.results[value + largest].tolist() if token >= 0]
