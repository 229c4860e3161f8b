"""benchmarks/torch_peer.py compares like with like: both PyTorch steps compute what gfn_jax does, the tool included."""

import dataclasses
import pathlib
import sys

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
CONFIG = """
from gfn_jax.commands.config_flag import load_config

def get_config(preset):
    config = load_config({source!r} + ":" + preset)
    config.model.update({{"vocab_size": 211, "width": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}})
    config.model.update({{"head_dim": 16, "mlp_width": 64, "max_positions": 256}})
    config.dtype, config.lora.rank, config.samples, config.length = "float32", 4, 3, 12
    if "rotary_dim" in config.model:
        config.model.rotary_dim = 8
    return config
"""


@pytest.fixture(scope="module", autouse=True)
def found():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("preset", ["a", "b", "gptj"])
def test_both_agree_with_gfn_jax(tmp_path, preset):
    pytest.importorskip("peft", reason="peft (a test dependency) is not installed")
    from peer import ours, theirs
    from peer.problem import Problem

    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(source=str(BENCHMARKS.parent / "configs" / "benchmark.py")))
    ours.write(f"{config}:{preset}", tmp_path)
    reference, problem = dict(np.load(tmp_path / "reference.npz")), Problem.load(tmp_path)
    for side in theirs.SIDES.values():
        computed = side(problem, tmp_path, "cpu")
        differences = computed.differences(reference)
        assert set(differences) == {"log_pf", "log_pterm", "log_reward", "loss"}
        assert max(differences.values()) < 1e-4
        assert set(computed.step(lambda: 0.0)) == {"rollout", "reward", "update", "step"}
        reference["log_reward"] += 1e-3
        assert computed.differences(reference)["log_reward"] > 1e-4
        reference["log_reward"] -= 1e-3


def test_the_tool_writes_what_the_calculator_does():
    """On random texts, token after token; the calculator's automaton is tested on its own."""
    import jax
    from peer.problem import Problem, Tool

    from gfn_jax.environments import Calculator
    from gfn_jax.text.tokens import token_strings
    from gfn_jax.text.wordlevel import build_tokenizer

    tokenizer = build_tokenizer()
    calculator = Calculator.from_tokenizer(tokenizer, max_abs_value=60)
    strings = token_strings(tokenizer)
    wanted = [i for i, text in enumerate(strings) if text and text[-1] in "0123456789+-=, ."]
    rows, none = 512, np.zeros((1, 1), int)
    fields = {field.name: none for field in dataclasses.fields(Problem)}
    given = {"samples": rows, "dtype": "float32", "min_length": 0, "max_length": 12, "call_room": 0, "largest": 60}
    tool = Tool(Problem(**fields | given | {"strings": strings, "results": np.asarray(calculator.results)}))
    rng, state, step, calls = np.random.default_rng(0), calculator.init(rows), jax.jit(calculator.step), 0
    operators = [i for i in wanted if strings[i].strip() in ("+", "-", "=")]
    operands = [i for i in wanted if strings[i].strip().isdigit()]
    for column in range(12):
        likely = rng.choice(operators if column % 2 else operands, rows)
        tokens = np.where(rng.random(rows) < 0.1, rng.choice(wanted, rows), likely)
        forced = np.asarray(calculator.forced(state))
        np.testing.assert_array_equal(tool.forced(), forced)
        np.testing.assert_array_equal(tool.may_stop(), np.asarray(calculator.may_stop(state)))
        tokens = np.where(forced < 0, tokens, forced)
        calls += (forced >= 0).sum()
        tool.step(tokens)
        state = step(state, tokens)
    assert calls > 100
