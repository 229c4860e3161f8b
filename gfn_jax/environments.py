"""Environments: no tool, and the calculator, an automaton over tokens whose tables come from the tokenizer.

The calculator reads Z as it is written. After a token that ends in '=' it writes the value of the last two
operands of the expression before it (Hu et al. 2024, section 4.4: "we limit the calculator to evaluate only
two-term expressions"), as forced tokens that the policy did not choose:

    expression = operand (operator operand)+ '='      operand = ['-'] digits      operator = '+' | '-'
    value      = a (operator) b,  with a, b the last two operands:  6 - 0 - 4 = writes 0 - 4, which is -4

Spaces are free except inside digits. A comma, a dot, a newline or '=' begins a new expression; any other
character spoils the expression it is in, and so does an operand beyond `max_abs_value`, wherever it stands
(6000 - 0 - 4 with a bound of 60). A malformed or spoilt expression, a value beyond `max_abs_value`, and an '='
inside a token have no result: nothing is written and generation goes on.
What the tool writes is part of the text like everything else: in "5 + 9 = 14 - 3 =" it is the left operand.

Nothing here is ever evaluated as code. A token is a handful of symbols at most (a run of digits is one,
appended by magnitude * 10^length + number), so one step is that many look-ups in a table of phases a row.
"""

import dataclasses
import re
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from gfn_jax.text.tokens import encode_after, token_strings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@struct.dataclass
class NoTool:
    """No tool: nothing is forced and Z may end anywhere. The state of a row is the -1 that it answers."""

    def init(self, rows: int) -> Int[Array, " B"]:
        return jnp.full(rows, -1, jnp.int32)

    def step(self, state: Int[Array, " B"], token: Int[Array, " B"]) -> Int[Array, " B"]:
        return state

    def forced(self, state: Int[Array, " B"]) -> Int[Array, " B"]:
        return state

    def may_stop(self, state: Int[Array, " B"]) -> Bool[Array, " B"]:
        return jnp.ones_like(state, bool)


# What a token is made of, for the calculator.
NOTHING, SPACE, NUMBER, PLUS, MINUS, BREAK, EQUALS, OTHER = range(8)
CALL = "="  # the character that opens a call, and must end the token it is in
SYMBOLS = {" ": SPACE, "+": PLUS, "-": MINUS, ",": BREAK, ".": BREAK, "\n": BREAK, CALL: EQUALS}

# Where in an expression a row is: before an operand, after its minus sign, in its digits, after it, nowhere.
START, SIGNED, DIGITS, AFTER, SPOILT = range(5)
NEXT_PHASE = np.array(
    #  NOTHING SPACE   NUMBER  PLUS    MINUS   BREAK  EQUALS OTHER
    [
        [START, START, DIGITS, SPOILT, SIGNED, START, START, SPOILT],
        [SIGNED, SIGNED, DIGITS, SPOILT, SPOILT, START, START, SPOILT],
        [DIGITS, AFTER, DIGITS, START, START, START, START, SPOILT],
        [AFTER, AFTER, SPOILT, START, START, START, START, SPOILT],
        [SPOILT, SPOILT, SPOILT, SPOILT, SPOILT, START, START, SPOILT],
    ],
    dtype=np.int32,
)

# A magnitude saturates at max_abs_value + 1 and is multiplied by a power of ten that saturates there too.
LARGEST_BOUND = int(np.sqrt(np.iinfo(np.int32).max)) - 2


def _symbols(text: str, ceiling: int) -> list[tuple[int, int, int]]:
    """A surface text as (symbol, number, scale), the shortest list that the automaton cannot tell from it."""
    text = text or "x"  # a token that writes nothing readable
    text = re.sub(r"[^-+=,.\n 0-9][^=,.\n]*", "x", text)  # what is spoilt stays so
    text = re.sub(r" +", " ", text)
    text = re.sub(r"(?:[-+] ?){3}[^=,.\n]*", "x", text)  # operator, sign, and one too many
    text = re.sub(r"(?s).*[=,.\n](?=.)", ",", text)  # a break forgets; only a final '=' calls
    pieces = re.findall(r"[0-9]+|[^0-9]", text)
    return [
        (NUMBER, min(int(piece), ceiling), min(10 ** len(piece), ceiling))
        if piece.isdigit()
        else (SYMBOLS.get(piece, OTHER), 0, 1)
        for piece in pieces
    ]


def _symbol_table(strings: list[str], ceiling: int) -> Int[np.ndarray, "3 V S"]:
    """The symbols of every token, padded left so that an '=' is always in the last column."""
    lists = [_symbols(text, ceiling) for text in strings]
    width = max(map(len, lists))
    padded = [[(NOTHING, 0, 1)] * (width - len(symbols)) + symbols for symbols in lists]
    return np.array(padded, dtype=np.int32).transpose(2, 0, 1)


def _result_table(tokenizer: "PreTrainedTokenizerFast", strings: list[str], bound: int) -> Int[np.ndarray, "R W"]:
    """The tokens of every value from -bound to bound as they follow an '=', with at least one -1 behind."""
    rows = []
    for value in sorted(range(-bound, bound + 1), key=abs):  # an error names the smallest that is missing
        text = f" {value}"
        ids = encode_after(tokenizer, f"1 - 2 {CALL}", text)
        rows.append((value, ids))
        if "".join(strings[i] for i in ids) != text:
            raise ValueError(f"the tokenizer cannot write {text!r}, a result within max_abs_value {bound}")
    table = np.full((2 * bound + 1, max(len(ids) for _, ids in rows) + 1), -1, dtype=np.int32)
    for value, ids in rows:
        table[value + bound, : len(ids)] = ids
    return table


@struct.dataclass
class CalculatorState:
    """One row's place in its expression `left operator sign * magnitude`, and in the result being written.

    `operator` is +1, -1, or 0 before there is one; a `magnitude` that saturates at max_abs_value + 1 spoils it.
    """

    phase: Int[Array, " B"]
    left: Int[Array, " B"]
    operator: Int[Array, " B"]
    sign: Int[Array, " B"]
    magnitude: Int[Array, " B"]
    ends_in_digit: Bool[Array, " B"]
    result: Int[Array, " B"]  # row of the result table
    written: Int[Array, " B"]  # tokens of it that are written


@struct.dataclass
class Calculator:
    """The calculator of the module docstring, as tables over the vocabulary; make it with `from_tokenizer`.

    Attributes:
        symbols: the kind, number and scale of each token's symbols.
        ends_in_digit: the token's last character is a digit.
        triggers: the token ends in '=', so that a result may follow it.
        results: the tokens of every value from -max_abs_value up, -1 behind the last.
        max_abs_value: the largest operand and result, in absolute value.
        max_result_tokens: the most tokens that a result takes: the room a trigger needs before the horizon.
        stop_after_number: Z may end only behind a digit; otherwise anywhere but inside a result.
    """

    symbols: Int[Array, "3 V S"]
    ends_in_digit: Bool[Array, " V"]
    triggers: Bool[Array, " V"]
    results: Int[Array, "R W"]
    max_abs_value: int = struct.field(pytree_node=False)
    max_result_tokens: int = struct.field(pytree_node=False)
    stop_after_number: bool = struct.field(pytree_node=False)

    @classmethod
    def from_tokenizer(
        cls, tokenizer: "PreTrainedTokenizerFast", *, max_abs_value: int, stop_after_number: bool = True
    ) -> "Calculator":
        """Builds the tables.

        Raises:
            ValueError: the bound is out of range, or the tokenizer cannot write a result or an '='.
        """
        if not 0 < max_abs_value <= LARGEST_BOUND:
            raise ValueError(f"max_abs_value must be between 1 and {LARGEST_BOUND}, it is {max_abs_value}")
        strings = token_strings(tokenizer)
        triggers = np.array([text.endswith(CALL) for text in strings])
        if not triggers.any():
            raise ValueError(f"the tokenizer has no token that ends in {CALL!r}: the calculator cannot be called")
        results = _result_table(tokenizer, strings, max_abs_value)
        return cls(
            symbols=jnp.asarray(_symbol_table(strings, max_abs_value + 1)),
            ends_in_digit=jnp.array([text[-1:] in set("0123456789") for text in strings]),
            triggers=jnp.asarray(triggers),
            results=jnp.asarray(results),
            max_abs_value=max_abs_value,
            max_result_tokens=results.shape[1] - 1,
            stop_after_number=stop_after_number,
        )

    def init(self, rows: int) -> CalculatorState:
        zeros = jnp.zeros(rows, jnp.int32)
        return CalculatorState(
            phase=zeros + START,
            left=zeros,
            operator=zeros,
            sign=zeros + 1,
            magnitude=zeros,
            ends_in_digit=jnp.zeros(rows, bool),
            result=zeros,
            written=zeros + self.max_result_tokens,
        )

    def step(self, state: CalculatorState, token: Int[Array, " B"]) -> CalculatorState:
        # A token other than the one the tool was to write (a text from elsewhere) ends its writing.
        follows = token == self.forced(state)
        written = jnp.where(follows, state.written + 1, self.max_result_tokens)
        kinds, numbers, scales = jnp.moveaxis(self.symbols[:, token], -1, 1)  # [S, B] each
        for kind, number, scale in zip(kinds[:-1], numbers[:-1], scales[:-1]):
            state = self._read(state, kind, number, scale)
        called, value = self._evaluate(state)
        called &= kinds[-1] == EQUALS
        state = self._read(state, kinds[-1], numbers[-1], scales[-1])
        return dataclasses.replace(
            state,
            ends_in_digit=self.ends_in_digit[token],
            result=jnp.where(called, value + self.max_abs_value, state.result),
            written=jnp.where(called, 0, written),
        )

    def forced(self, state: CalculatorState) -> Int[Array, " B"]:
        return self.results[state.result, state.written]

    def may_stop(self, state: CalculatorState) -> Bool[Array, " B"]:
        free = self.forced(state) < 0
        return free & state.ends_in_digit if self.stop_after_number else free

    def _read(self, state: CalculatorState, kind: jax.Array, number: jax.Array, scale: jax.Array) -> CalculatorState:
        """The state after one more symbol (the result being written is not its business)."""
        complete = (state.phase == DIGITS) | (state.phase == AFTER)
        operates = complete & ((kind == PLUS) | (kind == MINUS))
        begins = (kind == BREAK) | (kind == EQUALS)
        # The product fits: both factors are at most LARGEST_BOUND + 1.
        appended = jnp.minimum(state.magnitude * scale + number, self.max_abs_value + 1)
        too_large = (kind == NUMBER) & (appended > self.max_abs_value)
        operator = jnp.where(kind == PLUS, 1, -1)
        return dataclasses.replace(
            state,
            phase=jnp.where(too_large, SPOILT, jnp.asarray(NEXT_PHASE)[state.phase, kind]),
            left=jnp.where(operates, state.sign * state.magnitude, state.left),
            operator=jnp.where(operates, operator, jnp.where(begins, 0, state.operator)),
            sign=jnp.where(operates | begins, 1, jnp.where(kind == MINUS, -1, state.sign)),
            magnitude=jnp.where(kind == NUMBER, appended, jnp.where(operates | begins, 0, state.magnitude)),
        )

    def _evaluate(self, state: CalculatorState) -> tuple[Bool[Array, " B"], Int[Array, " B"]]:
        """Whether the expression up to here has a result, and the result."""
        value = state.left + state.operator * state.sign * state.magnitude
        complete = (state.phase == DIGITS) | (state.phase == AFTER)
        return complete & (state.operator != 0) & (jnp.abs(value) <= self.max_abs_value), value
