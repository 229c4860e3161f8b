"""The sampling command: what it prints is what the policy and the base say, and what is wrong is one line."""

import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import random_lora, tiny

from gfn_jax import build_sample, sample
from gfn_jax.environments import NoTool
from gfn_jax.models.adapters import save_adapter
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.lora import LoraConfig
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward, sequential_log_reward
from gfn_jax.text.batching import pad_left, pad_right
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.text.tokens import encode_after
from gfn_jax.text.wordlevel import build_tokenizer
from gfn_jax.training.checkpoint import Checkpointer
from gfn_jax.types import Query

SHORT, LONG = "Question: 6 - 0 - 4 = ? Answer:", "Question: 7 + 1 - 4 - 8 = ? Answer:"
ANSWER = ". The answer is 2."
COMMON = re.compile(r"\b(a|and|the|to|was|it|he|she|her|his|they|in|day|said|with|of|for|that|little)\b")
CHARACTERS = "0123456789+-=, "
CALCULATOR = ["--calculator", f"--characters={CHARACTERS}", "--min_length=5", "--max_length=13"]


def run(capsys, *arguments: str) -> list[dict]:
    """The command's JSON lines."""
    assert sample.main(["sample", "--jsonl", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(scope="module")
def model():
    folder = model_folder("tiny-arithmetic")
    return (*load_model(folder), load_tokenizer(folder))


def test_the_calculator_and_both_logarithms(capsys, model):
    """Two prompts of different lengths in one batch, beside one row alone without padding."""
    arguments = [*CALCULATOR, f"--prompt={SHORT}", f"--prompt={LONG}", f"--answer={ANSWER}", "--samples=6"]
    rows = run(capsys, "--model=tiny-arithmetic", *arguments)
    assert [row["prompt"] for row in rows] == [SHORT] * 6 + [LONG] * 6
    assert set(rows[0]) == {"prompt", "completion", "log_q", "log_r", "length", "finished"}
    assert all(set(row["completion"]) <= set(CHARACTERS) and row["length"] <= 13 for row in rows)
    calls = [call for row in rows for call in re.findall(r"(-?\d+) ([+-]) (-?\d+) = (-?\d+)", row["completion"])]
    assert calls
    assert all(int(a) + int(b) * (1 if sign == "+" else -1) == int(c) for a, sign, b, c in calls)

    config, params, tokenizer = model
    own = [row for row in rows if row["prompt"] == SHORT and row["finished"]]
    # One that called the tool for log q, and the shortest for log R: the oracle is a program a prefix.
    row, shortest = max(own, key=lambda row: "=" in row["completion"]), min(own, key=lambda row: row["length"])
    settings = build_sample.Settings("", (SHORT,), min_length=5, max_length=13, characters=CHARACTERS, calculator=True)
    constraint, environment = build_sample.make_world(settings, tokenizer, config.vocab_size)
    ids = encode_after(tokenizer, SHORT, row["completion"])
    assert len(ids) == row["length"]
    prompt = pad_left([encode_after(tokenizer, "", SHORT)], 0)
    answer = pad_right([encode_after(tokenizer, "1", ANSWER)], 0)
    completion = pad_right([ids], 0, length=14).ids
    forced = teacher_force(completion, jnp.array([len(ids)]), constraint, environment)
    log_pf = jax.jit(score, static_argnums=0)(config, params, None, prompt, forced, constraint).log_pf
    assert row["log_q"] == pytest.approx(float(log_pf.sum()), abs=1e-3)
    ids = encode_after(tokenizer, SHORT, shortest["completion"])
    forced = teacher_force(jnp.array([[*ids, 0]]), jnp.array([len(ids)]), constraint, environment)
    query = Query(example_id=jnp.zeros(1, int), prompt=prompt, context=prompt, answer=answer)
    oracle = jax.jit(functools.partial(sequential_log_reward, PosteriorReward(config)))
    expected = oracle(params, PosteriorReward(config).prepare(params), query, forced)[0, len(ids)]
    assert shortest["log_r"] == pytest.approx(float(expected), abs=1e-3)


def test_english(capsys, shared, tmp_path):
    """Prompts from a file, in batches of one with the last of another length; a story comes out."""
    (tmp_path / "prompts.txt").write_text("Once upon a time\nLily went to the park and saw\n")
    model, prompts = f"--model={shared / 'models/stories260k'}", f"--prompts={tmp_path / 'prompts.txt'}"
    rows = run(capsys, model, prompts, "--batch=1", "--samples=2", "--temperature=0.7", "--max_length=48")
    assert len(rows) == 4
    for row in rows:
        words = re.findall(r"[a-z]+", row["completion"].lower())
        assert len(COMMON.findall(" ".join(words))) >= len(words) / 4 > 2
        assert row["log_q"] < 0
        assert row["log_r"] < 0


def test_text_and_the_note_on_tokens(capsys, caplog):
    batch = [build_sample.Sample("X:", " Z", -1.0, -2.345, 1, True), build_sample.Sample("X:", " Z", 0, 0, 1, False)]
    sample.write(batch, jsonl=False)
    assert capsys.readouterr().out == (
        "X: Z\n  log q -1.00  log R -2.35\nX: Z\n  log q 0.00  log R 0.00  (cut at the maximum length)\n"
    )
    tokenizer = build_tokenizer()
    settings = build_sample.Settings("", ("Answer:",), max_length=3)
    constraint, _ = build_sample.make_world(settings, tokenizer, len(tokenizer))
    query = build_sample.make_query(settings, tokenizer, constraint.stop_id)
    for pieces, warned in (([" 10"], False), ([" 1", "0"], True)):
        caplog.clear()
        completion = pad_right([tokenizer.convert_tokens_to_ids(pieces)], 1, length=4).ids
        drawn = teacher_force(completion, jnp.array([len(pieces)]), constraint, NoTool())
        described = build_sample.describe(settings, tokenizer, query, (drawn, np.zeros(1), np.zeros(1)), 1)
        assert described[0].completion == " 10"
        assert ("apart ' 1' '0', joined ' 10'" in caplog.text) is warned


def test_adapters_of_a_run_and_of_peft(tmp_path):
    config, lora = tiny(), random_lora(tiny())
    names = (*lora.layers, "head")
    settings = LoraConfig(rank=3, alpha=6, targets=names)
    run = tmp_path / "run"
    run.mkdir()
    section = {"rank": 3, "alpha": 6, "targets": names, "dropout": 0.0, "rank_stabilized": False}
    (run / "config.json").write_text(json.dumps({"lora": section}))
    saver = Checkpointer(run, "digest")
    for step, scale in ((9, 0.0), (10, 1.0)):
        scaled = jax.tree.map(lambda x, scale=scale: scale * x, lora)
        saver.save(step, {"trainable": {"lora": scaled, "log_z": None}, "replay": jnp.zeros(3)}, 0.0)
    saver.close()
    save_adapter(tmp_path / "peft", config, settings, lora, "llama")
    for name in ("run", "peft"):
        read = build_sample.read_adapter(str(tmp_path / name), config, "llama")
        assert read.scale == lora.scale
        jax.tree.map(np.testing.assert_array_equal, read, lora)
    with pytest.raises(ValueError, match="has another base"):
        build_sample.read_adapter(str(run), tiny(width=24), "llama")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model=tiny-arithmetic"], "no prompt; write --prompt=TEXT.*"),
        (["--prompt=a"], "no model; name a folder.*"),
        (["--model=/absent/model", "--prompt=a"], "there is no folder /absent/model"),
        (["--model=tiny-arithmetic", "--prompt=1", "--adapter=/absent/a"], "there is no folder /absent/a"),
        (["--model=tiny-arithmetic", "--prompt=1", "--adapter=EMPTY"], "EMPTY is no adapter: .*"),
        (["--model=NOCALL", "--prompt=1", "--calculator"], "the tokenizer has no token that ends in '=': .*"),
        (["--model=tiny-arithmetic", "--prompt=1", "--max_length=999"], ".* positions; the model has 512.*"),
        (["--model=tiny-arithmetic", "--prompts=/absent/file"], "No such file or directory: '/absent/file'"),
        (["--model=tiny-arithmetic", "--prompt=1", "--stop=xyz"], "the stop text 'xyz' must be one token.*"),
        (["--model=tiny-arithmetic", "--sample=2"], "Unknown command line flag 'sample'.*"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, tmp_path, arguments, line):
    if "EMPTY" in " ".join(arguments):
        (tmp_path / "EMPTY").mkdir()
    if "NOCALL" in " ".join(arguments):
        shutil.copytree(model_folder("tiny-arithmetic"), tmp_path / "NOCALL")
        file = tmp_path / "NOCALL" / "tokenizer.json"
        file.write_text(file.read_text().replace('="', '~"'))
    arguments = [re.sub("EMPTY|NOCALL", lambda m: str(tmp_path / m[0]), word) for word in arguments]
    assert sample.main(["sample", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(f"error: {line}\n", captured.err.replace(f"{tmp_path}/", ""))
