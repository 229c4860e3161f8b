"""The sampling command: what it prints is what the policy and the base say, and what is wrong is one line."""

import functools
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tokenizers import sentencepiece
from tiny_worlds import random_lora, random_params, tiny
from tokenizers.processors import TemplateProcessing

from gfn_jax import sample
from gfn_jax.commands import sampling
from gfn_jax.commands.sample import written
from gfn_jax.environments import NoTool
from gfn_jax.models.adapters import save_adapter
from gfn_jax.models.checkpoint import load_model, save_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.models.quantize import is_quantized
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward, sequential_log_reward
from gfn_jax.runs.saved import SavedRun
from gfn_jax.text.batching import pad_left, pad_right
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.text.tokens import encode_after
from gfn_jax.text.wordlevel import build_tokenizer
from gfn_jax.training.checkpoint import Checkpointer
from gfn_jax.types import Query
from gfn_jax.worlds.stories import draw_stories

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
    settings = sampling.Settings("", (SHORT,), min_length=5, max_length=13, characters=CHARACTERS, calculator=True)
    base, rules = LanguageModel(config, params), sampling.make_rules(settings, tokenizer, config.vocab_size)
    ids = encode_after(tokenizer, SHORT, row["completion"])
    assert len(ids) == row["length"]
    prompt = pad_left([encode_after(tokenizer, "", SHORT)], 0)
    answer = pad_right([encode_after(tokenizer, "1", ANSWER)], 0)
    completion = pad_right([ids], 0, length=14).ids
    forced = teacher_force(completion, jnp.array([len(ids)]), rules)
    log_pf = jax.jit(score)(base, prompt, forced, rules).log_pf
    assert row["log_q"] == pytest.approx(float(log_pf.sum()), abs=1e-3)
    ids = encode_after(tokenizer, SHORT, shortest["completion"])
    forced = teacher_force(jnp.array([[*ids, 0]]), jnp.array([len(ids)]), rules)
    query = Query(example_id=jnp.zeros(1, int), prompt=prompt, context=prompt, answer=answer)
    oracle = jax.jit(functools.partial(sequential_log_reward, PosteriorReward()))
    expected = oracle(base, PosteriorReward().prepare(base), query, forced)[0, len(ids)]
    assert shortest["log_r"] == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("name", ["tiny-stories", pytest.param("models/stories260k", marks=pytest.mark.reference)])
def test_english(capsys, name, request, tmp_path):
    """Prompts from a file, in batches of one with the last of another length; a story comes out."""
    texts = ["Once upon a time", "Lily went to the park and saw"]
    if name == "tiny-stories":  # it knows no other beginnings
        texts = [story.beginning.text for story in draw_stories("test", 2)]
    (tmp_path / "prompts.txt").write_text("\n".join(texts) + "\n")
    model = name if name == "tiny-stories" else request.getfixturevalue("shared") / name
    model, prompts = f"--model={model}", f"--prompts={tmp_path / 'prompts.txt'}"
    rows = run(capsys, model, prompts, "--batch=1", "--samples=2", "--temperature=0.7", "--max_length=48")
    assert len(rows) == 4
    for row in rows:
        words = re.findall(r"[a-z]+", row["completion"].lower())
        assert len(COMMON.findall(" ".join(words))) >= len(words) / 4 > 2
        assert row["log_q"] < 0
        assert row["log_r"] < 0


def test_text_and_the_note_on_tokens(caplog):
    batch = [sampling.Sample("X:", " Z", -1.0, -2.345, 1, True), sampling.Sample("X:", " Z", 0, 0, 1, False)]
    assert written(batch, jsonl=False) == (
        "X: Z\n  log q -1.00  log R -2.35\nX: Z\n  log q 0.00  log R 0.00  (cut at the maximum length)"
    )
    tokenizer = build_tokenizer()
    settings = sampling.Settings("", ("Answer:",), max_length=3)
    constraint = sampling.make_rules(settings, tokenizer, len(tokenizer)).constraint
    query = sampling.make_query(settings, tokenizer, constraint.stop_id)
    for pieces, warned in (([" 10"], False), ([" 1", "0"], True)):
        caplog.clear()
        completion = pad_right([tokenizer.convert_tokens_to_ids(pieces)], 1, length=4).ids
        drawn = teacher_force(completion, jnp.array([len(pieces)]), Rules(constraint, NoTool()))
        described = sampling.describe(settings, tokenizer, query, (drawn, np.zeros(1), np.zeros(1)), 1)
        assert described[0].completion == " 10"
        assert ("apart ' 1' '0', joined ' 10'" in caplog.text) is warned


LORA = {"rank": 3, "alpha": 6, "targets": ("q", "o"), "dropout": 0.0, "rank_stabilized": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`base`, whose tokenizer begins texts with <eos>, `plain`, whose has it and does not, `run` and `peft`."""
    folder, tokenizer = tmp_path_factory.mktemp("folders"), build_tokenizer()
    config = tiny(vocab_size=len(tokenizer), rotary_dim=8)
    lora = random_lora(config, targets=LORA["targets"])
    for name in ("plain", "base"):
        save_model(folder / name, config, random_params(config), "llama")
        tokenizer.bos_token = "<eos>"
        tokenizer.save_pretrained(folder / name)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<eos> $A", None, [("<eos>", 1)])
    save_adapter(folder / "peft", config, LoraConfig(**LORA), lora, "llama", str(folder / "base"))
    saved = {"task": "arithmetic", "arithmetic": {"max_abs_value": 37}, "lora": LORA}
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(saved | {"model": {"path": str(folder / "base")}}))
    saver = Checkpointer(folder / "run", "digest")
    for step, scale in ((9, 0.0), (10, 1.0)):
        scaled = jax.tree.map(lambda x, scale=scale: scale * x, lora)
        saver.save(step, {"trainable": {"lora": scaled, "log_z": None}, "replay": jnp.zeros(3)}, 0.0)
    saver.close()
    return folder


def test_adapters_of_a_run_and_of_peft(folders, caplog):
    config = tiny(vocab_size=len(build_tokenizer()), rotary_dim=8)
    lora = random_lora(config, targets=LORA["targets"])
    for name in ("run", "peft"):
        read, run = sampling.read_adapter(str(folders / name), config, "llama", f"{folders}/peft/../base")
        assert (run is None) == (name == "peft")
        assert read.scale == lora.scale
        jax.tree.map(np.testing.assert_array_equal, read, lora)
        assert not caplog.messages
        sampling.read_adapter(str(folders / name), config, "llama", str(folders / "plain"))
        (warning,) = caplog.messages
        assert warning == f"the adapter in {folders / name} was made for {folders}/base; --model is {folders}/plain"
        caplog.clear()
    with pytest.raises(ValueError, match="has another base"):
        sampling.read_adapter(str(folders / "run"), tiny(width=24), "llama", "")


@pytest.fixture
def built(monkeypatch, folders):
    """What a command would draw with, without drawing: its base and its queries."""

    def build(model: str, adapter: str | None = None, **settings):
        adapter = None if adapter is None else str(folders / adapter)
        return sampling.sample(sampling.Settings(str(folders / model), ("1",), adapter, **settings))

    monkeypatch.setattr(sampling, "make_draw", lambda policy, *rest: policy)
    monkeypatch.setattr(sampling, "batches", lambda settings, tokenizer, query, draw, policy: (draw, query))
    return build


@pytest.mark.parametrize(
    ("model", "adapter", "bos", "begins"),
    [
        ("base", None, "auto", True),
        ("base", None, "no", False),
        ("base", "peft", "auto", True),
        ("base", "run", "auto", False),
        ("base", "run", "yes", True),
        ("plain", None, "auto", False),
        ("plain", None, "yes", True),
    ],
)
def test_how_a_prompt_begins(built, model, adapter, bos, begins):
    _, query = built(model, adapter, bos=bos)
    assert (query.prompt.ids[0, 0] == 1) == begins
    assert query.prompt.ids.shape == (1, 1 + begins)


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_the_base_is_quantised_if_asked_for(built, kind):
    assert is_quantized(built("plain", quantize=kind)[0].params) == (kind != "none")


def test_how_far_the_calculator_reckons(caplog):
    caplog.set_level("INFO")
    words, english = build_tokenizer(), sentencepiece()
    run = SavedRun(pathlib.Path("runs/x"), {"task": "arithmetic", "arithmetic": {"max_abs_value": 37}}, (1,))
    other = SavedRun(pathlib.Path("runs/x"), {"task": "infilling", "infilling": {}}, (1,))
    own = SavedRun(pathlib.Path("runs/x"), {"task": "configs.own_task:TASK", "sentence": {}}, (1,))
    cases = [
        (words, None, None, 60),
        (words, other, None, 60),
        (words, own, None, 60),
        (words, run, None, 37),
        (words, run, 50, 50),
    ]
    for tokenizer, adapter, asked, bound in [*cases, (english, None, None, 99)]:
        caplog.clear()
        settings = sampling.Settings("", ("1",), calculator=True, stop="<unk>", max_abs_value=asked)
        rules = sampling.make_rules(settings, tokenizer, len(tokenizer), adapter)
        assert rules.environment.max_abs_value == bound
        assert len(caplog.messages) == (asked is None)
        assert all(f"up to {bound}, " in message for message in caplog.messages)


def test_a_batch_is_there_before_the_next_is_drawn(monkeypatch):
    buffer = io.BytesIO()
    one = sampling.Sample("X:", " Z", -1.0, -2.0, 1, True)

    def drawn(settings):
        yield [one]
        assert buffer.getvalue().count(b"X: Z") == 1
        yield [one]

    monkeypatch.setattr(sampling, "sample", drawn)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer))
    assert sample.main(["sample", "--model=m", "--prompt=X:"]) == 0
    assert buffer.getvalue().count(b"X: Z") == 2


@pytest.mark.slow
def test_several_devices_draw_what_one_draws(capsys, folders):
    """A quantised base over two virtual devices, which three prompts do not divide over."""
    arguments = [f"--model={folders / 'plain'}", f"--adapter={folders / 'peft'}", "--quantize=int8", "--max_length=4"]
    arguments += ["--prompt=1", "--prompt=1 + 2", "--prompt=3 =", "--samples=2", "--jsonl"]
    flags = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
    done = subprocess.run(
        [sys.executable, "-m", "gfn_jax.sample", *arguments, "--fsdp=2"],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sample.main(["sample", *arguments]) == 0
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(alone) == 6
    for one, other in zip(alone, map(json.loads, done.stdout.splitlines()), strict=True):
        assert one == {**other, "log_q": pytest.approx(other["log_q"]), "log_r": pytest.approx(other["log_r"])}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model=tiny-arithmetic"], "no prompt; write --prompt=TEXT.*"),
        (["--prompt=a"], "no model; name a folder.*"),
        (["--model=tiny-arithmetic", "--prompt=1", "--temperature=nan"], "--temperature is nan; it must be .*"),
        (["--model=tiny-arithmetic", "--prompt=1", "--temperature=1e-30"], "--temperature is 1e-30; .* from 0.001 .*"),
        (["--model=tiny-arithmetic", "--prompt=1", "--temperature=-1"], "--temperature is -1.0; .* or 0"),
        (["--model=tiny-arithmetic", "--prompt=1", "--samples=0"], "--samples is 0; .* at least 1"),
        (["--model=tiny-arithmetic", "--prompt=1", f"--seed={2**70}"], f"--seed is {2**70}; .*"),
        (["--model=tiny-arithmetic", "--prompt=1", "--dtype=int8"], "--dtype is 'int8'; .* float32, bfloat16, float16"),
        (["--model=tiny-arithmetic", "--prompts=LATIN"], "LATIN, byte 3: not UTF-8 text"),
        (["--model=tiny-arithmetic", "--prompt=1", "--context=LATIN"], "LATIN, byte 3: not UTF-8 text"),
        (["--model=/absent/model", "--prompt=a"], "there is no folder /absent/model"),
        (["--model=tiny-arithmetic", "--prompt=1", "--adapter=/absent/a"], "there is no folder /absent/a"),
        (["--model=tiny-arithmetic", "--prompt=1", "--adapter=EMPTY"], "EMPTY is no adapter: .*"),
        (["--model=NOCALL", "--prompt=1", "--calculator"], "the tokenizer has no token that ends in '=': .*"),
        (["--model=tiny-arithmetic", "--prompt=1", "--max_length=999"], ".* positions; the model has 512.*"),
        (["--model=tiny-arithmetic", "--prompts=/absent/file"], "No such file or directory: '/absent/file'"),
        (["--model=tiny-arithmetic", "--prompt=1", "--stop=xyz"], "the stop text 'xyz' must be one token.*"),
        (["--model=tiny-arithmetic", "--sample=2"], "Unknown command line flag 'sample'.*"),
        (["--model=tiny-arithmetic", "--prompt=1", "--bos=yes"], "the tokenizer has no begin-of-text token .*"),
        (["--model=tiny-arithmetic", "--prompt=1", "--bos=so"], "flag --bos=so: value should be one of .*"),
        (["--model=tiny-arithmetic", "--prompt=1", "--quantize=int4"], "flag --quantize=int4: value should be .*"),
        (["--model=tiny-arithmetic", "--prompt=1", "--fsdp=3"], "mesh data=-1 x fsdp=3 x tensor=1 does not fit .*"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, tmp_path, arguments, line):
    if "EMPTY" in " ".join(arguments):
        (tmp_path / "EMPTY").mkdir()
    if "NOCALL" in " ".join(arguments):
        shutil.copytree(model_folder("tiny-arithmetic"), tmp_path / "NOCALL")
        file = tmp_path / "NOCALL" / "tokenizer.json"
        file.write_text(file.read_text().replace('="', '~"'))
    (tmp_path / "LATIN").write_bytes(b"caf\xe9")
    arguments = [re.sub("EMPTY|NOCALL|LATIN", lambda m: str(tmp_path / m[0]), word) for word in arguments]
    assert sample.main(["sample", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(f"error: {line}\n", captured.err.replace(f"{tmp_path}/", ""))
