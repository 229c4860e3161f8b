"""Arithmetic with a calculator (Hu et al. 2024, section 4.4): chains of tool calls that explain an answer.

The policy sees X alone, "Question: 6 - 0 - 4 - 8 = ? Answer:", and writes Z, " 6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6", of
which the calculator writes what follows every "=". The reward is p_LM(X Z Y | demonstrations), Y being ". The answer
is -6.". The stop is Y's full stop, so that log q(stop | Z) starts from what the base already thinks of ending there.
"""

import dataclasses
import functools
import re
from typing import TYPE_CHECKING, Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.environments import CALL, LARGEST_BOUND, Calculator, CalculatorState
from gfn_jax.evaluation.arithmetic import ArithmeticEvaluator, EvaluationConfig
from gfn_jax.models.config import ModelConfig
from gfn_jax.policy.constraint import Constraint, make_constraint
from gfn_jax.rewards.posterior import PosteriorReward
from gfn_jax.sections import Count, Natural, Range, Share
from gfn_jax.tasks.arithmetic_data import load_examples
from gfn_jax.tasks.checking import check_positions, check_shots
from gfn_jax.tasks.task import TaskEntry
from gfn_jax.text.batching import make_seeds, pad_left, pad_right
from gfn_jax.text.tokens import allowed_ids, encode_after, pad_token
from gfn_jax.types import Query, Rollout, Seeds, Tokens
from gfn_jax.worlds.arithmetic_answers import right_chain
from gfn_jax.worlds.arithmetic_examples import ArithmeticExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHARACTERS = "0123456789+-=, "  # and the stop, which is "."
STOP = "."
_RESULT = re.compile(r"= ?(-?[0-9]{1,9}) ?\Z")


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig:
    """What may be chosen about the task.

    Attributes:
        path: folder of the paper's released JSON files; None for the project's own generated splits.
        seed_demonstrations: how many of the 50 demonstrations seed the replay buffer.
        reward_shots: demonstrations in the reward's context. They are the first ones, and are no training queries:
            a query that reads its own solution in the reward's prompt has another reward than the rest.
        min_length, max_length: tokens of Z while training.
        eval_max_length: the same at test, where five operands need more room.
        max_abs_value: the largest operand or result of the calculator.
        stop_after_number: Z may end only behind a complete number.
        seed_share: the demonstrations' questions' share of the draws.
    """

    path: str | None
    seed_demonstrations: Natural
    reward_shots: Natural
    min_length: Natural
    max_length: Count
    eval_max_length: Count
    max_abs_value: Annotated[int, Range(1, LARGEST_BOUND)]
    stop_after_number: bool
    seed_share: Share

    def __post_init__(self):
        for longest in ("max_length", "eval_max_length"):
            if self.min_length > getattr(self, longest):
                raise ValueError(f"min_length is {self.min_length}; {longest} is {getattr(self, longest)}")


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """The task on one tokenizer and one model's vocabulary."""

    config: ArithmeticConfig
    tokenizer: "PreTrainedTokenizerFast"
    vocab_size: int

    @functools.cached_property
    def splits(self) -> dict[str, list[ArithmeticExample]]:
        """Split -> examples; `train` holds the demonstrations that seed the buffer, then the 1,000 pairs.

        `demonstrations` are all that there are, the reward's `context` first.

        Raises:
            ValueError: fewer demonstrations than the config asks for, or unreadable data.
        """
        splits = load_examples(self.config.path)
        shots = self.config.reward_shots
        there = len(splits["demonstrations"])
        for name, asked, most in (
            ("reward_shots", shots, there),
            ("seed_demonstrations", self.config.seed_demonstrations, there - shots),
        ):
            if asked > most:
                raise ValueError(
                    f"arithmetic.{name} is {asked}; there are {there} demonstrations, of which reward_shots "
                    f"({shots}) are the reward's context: it must be 0 to {most}"
                )
        context, rest = splits["demonstrations"][:shots], splits["demonstrations"][shots:]
        seeds = rest[: self.config.seed_demonstrations]
        return {**splits, "context": context, "seeds": seeds, "train": [*seeds, *splits["train"]]}

    @functools.cached_property
    def environment(self) -> Calculator:
        """The calculator's tables on this tokenizer."""
        return Calculator.from_tokenizer(
            self.tokenizer,
            max_abs_value=self.config.max_abs_value,
            stop_after_number=self.config.stop_after_number,
        )

    def constraint(self, training: bool = True) -> Constraint:
        """Digits, operators, comma and space; the stop; between `min_length` and `max_length` tokens."""
        ids = allowed_ids(self.tokenizer, CHARACTERS, STOP, CALL)
        triggers = np.zeros(self.vocab_size, bool)
        known = np.asarray(self.environment.triggers)
        triggers[: len(known)] = known[: self.vocab_size]
        return make_constraint(
            self.vocab_size,
            stop_id=self.stop_id,
            max_length=self.config.max_length if training else self.config.eval_max_length,
            min_length=self.config.min_length,
            token_ids=ids,
            opens_call=triggers,
            call_room=self.environment.max_result_tokens,
        )

    @property
    def stop_id(self) -> int:
        """The token that ends Z."""
        return encode_after(self.tokenizer, "Answer: 1", STOP)[0]

    def queries(self, split: str, shots: int = 0) -> Query:
        """A split's queries; `shots` demonstrations precede the question in the policy's prompt.

        Raises:
            ValueError: there are fewer. A training question may be a demonstration itself: it is shown none but those
            of the reward's context, which are no training questions.
        """
        return self._queries(split, shots, hinted=False)

    def hinted_queries(self, split: str, shots: int = 0) -> Query:
        """As `queries`, the answer standing where the question mark was: "Question: 6 - 0 - 4 = 2 Answer:"."""
        return self._queries(split, shots, hinted=True)

    def _queries(self, split: str, shots: int, hinted: bool) -> Query:
        held_out = split.startswith(("validation", "test"))
        examples, shown = self.splits[split], self.splits["demonstrations" if held_out else "context"]
        if shots > len(shown):
            most = f"there are {len(shown)}" if held_out else f"arithmetic.reward_shots is {len(shown)}"
            raise ValueError(f"{shots} demonstrations are asked for in a prompt; {most}")

        def asked(example: ArithmeticExample) -> str:
            return example.hinted_question if hinted else example.question

        encode = functools.partial(encode_after, self.tokenizer)
        head = encode("", "".join(asked(each) + each.demonstration[len(each.question) :] for each in shown[:shots]))
        contexts = [encode("\n", example.question) for example in examples]
        prompts = [head + encode("\n", asked(example)) for example in examples]
        # The answer follows a number, whichever: its tokens do not depend on Z.
        answers = [encode(f"{example.question} 1", example.answer_text) for example in examples]
        return Query(
            example_id=jnp.arange(len(examples)),
            prompt=pad_left(prompts, self.pad_id),
            context=pad_left(contexts, self.pad_id),
            answer=pad_right(answers, self.pad_id),
        )

    @property
    def pad_id(self) -> int:
        """Fills masked positions; never seen."""
        return pad_token(self.tokenizer, self.stop_id)

    def query_weight(self) -> Float[np.ndarray, " E"]:
        """`seed_share` of the draws are demonstrations' questions; within either kind all are alike."""
        seeds, total = len(self.splits["seeds"]), len(self.splits["train"])
        share = self.config.seed_share if 0 < seeds < total else seeds / total
        return np.where(np.arange(total) < seeds, share / max(seeds, 1), (1 - share) / max(total - seeds, 1))

    def reward(self, model: ModelConfig) -> PosteriorReward:
        """Log p_LM(Z Y | demonstrations X).

        Raises:
            ValueError: it does not fit into the model's positions.
        """
        context = self.reward_context()
        shots = 0 if context is None else context.ids.shape[1]
        check_positions(model, self.queries("train"), self.config.max_length, shots)
        demonstrations = None if context is None else Tokens(jnp.asarray(context.ids), jnp.asarray(context.mask))
        return PosteriorReward(demonstrations=demonstrations)

    def reward_context(self) -> Tokens | None:
        """[1, D]: the reward's demonstrations, each a line X Z Y."""
        examples = self.splits["context"]
        if not examples:
            return None
        text = "".join(example.demonstration for example in examples)
        return pad_left([encode_after(self.tokenizer, "", text)], self.pad_id)

    def seeds(self) -> Seeds:
        """The seeding demonstrations, tool tokens included.

        Raises:
            ValueError: a demonstration is longer than `max_length`.
        """
        seeds = self.splits["seeds"]
        completions = [encode_after(self.tokenizer, example.question, example.completion) for example in seeds]
        return make_seeds(range(len(seeds)), completions, self.stop_id, self.config.max_length)

    def question(self, split: str, example: int) -> str:
        """X as text."""
        return self.splits[split][example].question

    def decode(self, ids: list[int]) -> str:
        """Z as text."""
        return str(self.tokenizer.decode(ids))

    def answer(self, completion: str) -> int | None:
        """The result that Z ends with; None, which is wrong for every question, where there is none.

        A rationale is a chain of calls, so the number must follow an "=": the last operand of an expression merely
        said again is no answer, even where it happens to be the right number.
        """
        match = _RESULT.search(completion)
        return None if match is None else int(match[1])

    def grade(self, split: str, example: int, completion: str) -> bool:
        """Whether Z ends with the right result."""
        return self.answer(completion) == self.splits[split][example].answer

    @functools.cached_property
    def train_answers(self) -> Int[np.ndarray, " E"]:
        """The right results of the training questions."""
        return np.array([example.answer for example in self.splits["train"]], np.int32)

    def valid(self, query: Query, rollout: Rollout) -> Bool[Array, " B"]:
        """`grade` on the device: the last number, and the calculator's last result, are the right one."""
        calculator = self.environment

        def read(state: CalculatorState, column: tuple[Array, Array]) -> tuple[CalculatorState, None]:
            token, written = column
            after = calculator.step(state, token)
            return jax.tree.map(lambda new, old: jnp.where(written, new, old), after, state), None

        columns = (rollout.completion.T, rollout.token_mask.T)
        state, _ = jax.lax.scan(read, calculator.init(len(rollout.completion)), columns)
        answers = jnp.asarray(self.train_answers)[query.example_id]
        answers = jnp.repeat(answers, len(rollout.completion) // len(answers))
        last = state.sign * state.magnitude
        called = state.result - calculator.max_abs_value
        return (last == answers) & (called == answers) & state.ends_in_digit & rollout.stop.any(axis=1)

    def mode(self, split: str, example: int, completion: str) -> str | None:
        """The chain, without its spaces, if every step of it is right."""
        return right_chain(self.splits[split][example], completion)

    def modes(self, split: str, example: int) -> None:
        """Nobody has counted the right chains."""

    def is_right_chain(self, split: str, example: int, completion: str) -> bool:
        """Whether every step of Z is the right one, not only its last number."""
        return self.mode(split, example, completion) is not None


def make_evaluator(
    config: EvaluationConfig, task: Arithmetic, model: ModelConfig, temperature: float
) -> ArithmeticEvaluator:
    """Accuracy by number of operands; on the released data also without the questions it shares with training."""
    test = {f"accuracy_{k}": f"test_{k}" for k in (3, 4, 5)}
    if task.config.path is not None:
        test |= {f"accuracy_{k}_decontaminated": f"test_{k}_decontaminated" for k in (3, 4, 5)}
    validation = {f"accuracy_{k}": f"validation_{k}" for k in (3, 4, 5)}
    check_shots(config.shots, len(task.splits["demonstrations"]), "the demonstrations")
    evaluator = ArithmeticEvaluator(task, config, validation, test)
    _ = evaluator.others  # what is wrong with them is said before training
    return evaluator


TASK = TaskEntry(
    section="arithmetic",
    config=ArithmeticConfig,
    evaluation=EvaluationConfig,
    task=lambda config, tokenizer, model: Arithmetic(config, tokenizer, model.vocab_size),
    evaluator=make_evaluator,
    certified="validation_4",
)
