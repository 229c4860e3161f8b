"""What an arithmetic question is, and the chain of calculator calls that solves it.

An expression "6 - 0 - 4 - 8" is asked, solved and answered as X Z Y (PAPER.md, arithmetic with a calculator):

    X  "Question: 6 - 0 - 4 - 8 = ? Answer:"
    Z  " 6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6"      what the language model sees: the tool has written the results
    Y  ". The answer is -6."

The released data holds Z as the policy writes it, "6 - 0 =, 6 - 4 =, 2 - 8 =": results are the tool's.
"""

import dataclasses
import re

_EXPRESSION = re.compile(r"-?[0-9]{1,9}(?: [+-] -?[0-9]{1,9})+")
_QUESTION = re.compile(rf"Question: ({_EXPRESSION.pattern}) = \? Answer:")
_STEP = re.compile(r"(-?[0-9]{1,9}) ([+-]) (-?[0-9]{1,9}) =(?: (-?[0-9]{1,9}))?")


@dataclasses.dataclass(frozen=True)
class ArithmeticExample:
    """One question with its answer, and its rationale where it is a demonstration.

    Attributes:
        question: X, "Question: 6 - 0 - 4 = ? Answer:".
        answer: the value of the expression.
        rationale: the chain with the tool's results and no leading space, "6 - 0 = 6, 6 - 4 = 2", or None.
    """

    question: str
    answer: int
    rationale: str | None = None

    @property
    def expression(self) -> str:
        """What the question asks for: "6 - 0 - 4"."""
        return expression_of(self.question)

    @property
    def hinted_question(self) -> str:
        """X with the answer given away: "Question: 6 - 0 - 4 = 2 Answer:"."""
        return f"Question: {self.expression} = {self.answer} Answer:"

    @property
    def answer_text(self) -> str:
        """Y, as it follows Z: ". The answer is 2."."""
        return f". The answer is {self.answer}."

    @property
    def completion(self) -> str:
        """Z as the language model sees it, leading space included: " 6 - 0 = 6, 6 - 4 = 2".

        Raises:
            ValueError: the example has no rationale.
        """
        if self.rationale is None:
            raise ValueError(f"no rationale: {self.question!r} is not a demonstration")
        return f" {self.rationale}"

    @property
    def written_completion(self) -> str:
        """Z without the tool's results, as the policy writes it: " 6 - 0 =, 6 - 4 ="."""
        return strip_results(self.completion)

    @property
    def demonstration(self) -> str:
        """X Z Y on a line of its own, as it stands in a few-shot context."""
        return f"{self.question}{self.completion}{self.answer_text}\n"


def make_example(expression: str, *, with_rationale: bool = False) -> ArithmeticExample:
    """The example that asks for `expression`, solved by its worked chain where a rationale is wanted."""
    rationale = worked_chain(expression) if with_rationale else None
    return ArithmeticExample(question_of(expression), evaluate(expression), rationale)


def question_of(expression: str) -> str:
    """X for an expression."""
    return f"Question: {expression} = ? Answer:"


def expression_of(question: str) -> str:
    """The expression that a question asks for.

    Raises:
        ValueError: the text is not a question of this task.
    """
    match = _QUESTION.fullmatch(question)
    if match is None:
        raise ValueError(f"expected a question like 'Question: 6 - 0 - 4 = ? Answer:', got {question!r}")
    return match[1]


def evaluate(expression: str) -> int:
    """The value of a sum of whole numbers, "6 - 0 - 4": what `eval` is never asked.

    Raises:
        ValueError: the text is not such a sum.
    """
    first, terms = _terms(expression)
    return first + sum(number if operator == "+" else -number for operator, number in terms)


def worked_chain(expression: str) -> str:
    """The right chain with the tool's results: one step an operator, each starting from the last result."""
    total, terms = _terms(expression)
    steps = []
    for operator, number in terms:
        result = apply(total, operator, number)
        steps.append(f"{total} {operator} {number} = {result}")
        total = result
    return ", ".join(steps)


def apply(left: int, operator: str, right: int) -> int:
    """What the calculator answers to "left operator right"."""
    return left + right if operator == "+" else left - right


def fill_results(written: str) -> str:
    """A chain as the policy writes it, with the tool's results: "6 - 0 =, 6 - 4 =" -> "6 - 0 = 6, 6 - 4 = 2".

    Raises:
        ValueError: the text is not a chain of steps of two operands.
    """
    steps = [_STEP.fullmatch(step) for step in written.split(", ")]
    if not all(steps):
        raise ValueError(f"expected a chain like '6 - 0 =, 6 - 4 =', got {written!r}")
    results = [(m[1], m[2], m[3], apply(int(m[1]), m[2], int(m[3]))) for m in steps if m is not None]
    return ", ".join(f"{left} {operator} {right} = {result}" for left, operator, right, result in results)


def strip_results(chain: str) -> str:
    """A chain without the tool's results: "6 - 0 = 6, 6 - 4 = 2" -> "6 - 0 =, 6 - 4 ="."""
    return re.sub(r"= -?[0-9]+", "=", chain)


def _terms(expression: str) -> tuple[int, list[tuple[str, int]]]:
    """The first number, and every further one with its operator."""
    if _EXPRESSION.fullmatch(expression) is None:
        raise ValueError(f"expected an expression like '6 - 0 - 4', got {expression!r}")
    first, *rest = expression.split(" ")
    return int(first), list(zip(rest[::2], map(int, rest[1::2])))
