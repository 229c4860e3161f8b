"""The split rule: stable, disjoint, of the sizes it says."""

import hashlib
import itertools
from collections import Counter

from gfn_jax.worlds.arithmetic_examples import evaluate, worked_chain
from gfn_jax.worlds.arithmetic_splits import SPLITS, generate_splits, is_held_out, room_of


def test_sizes_and_operands():
    splits = generate_splits()
    assert {split: len(examples) for split, examples in splits.items()} == {
        "demonstrations": 50,
        "train": 1_000,
        **{f"{kind}_{operands}": 500 for kind in ("validation", "test") for operands in (3, 4, 5)},
    }
    for split, (_, size, operands) in SPLITS.items():
        counts = Counter(len(example.expression.split()[::2]) for example in splits[split])
        assert counts == dict.fromkeys(operands, size // len(operands)), split


def test_no_expression_occurs_twice():
    expressions = [example.expression for examples in generate_splits().values() for example in examples]
    assert len(set(expressions)) == len(expressions) == 4_050


def test_examples_are_right_and_only_demonstrations_show_chains():
    for split, examples in generate_splits().items():
        for example in examples:
            assert example.answer == evaluate(example.expression)
            shown = worked_chain(example.expression) if split == "demonstrations" else None
            assert example.rationale == shown


def test_held_out_is_validation_and_test():
    for split, examples in generate_splits().items():
        expected = split.startswith(("validation", "test"))
        assert all(is_held_out(example.expression) == expected for example in examples), split


def test_rooms_of_all_three_operand_expressions():
    signed = itertools.product("+-", range(10))
    rest = [f" {a} {b} {c} {d}" for (a, b), (c, d) in itertools.product(signed, repeat=2)]
    rooms = Counter(room_of(f"{first}{tail}") for first in range(10) for tail in rest)
    assert rooms == {"test": 620, "validation": 630, "training": 602, "pretraining": 2_148}


def test_splits_are_those_of_version_1_0_0():
    """Caches and the shipped base model rely on the splits: a change needs a new version of the builder."""
    text = "\n".join(f"{split} {e.question}" for split, examples in generate_splits().items() for e in examples)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f917b244a71effca"
