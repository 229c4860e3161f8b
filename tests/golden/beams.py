"""Greedy, beam and diverse beam search as transformers' torch `generate` finds them, for tiny random GPT-2s.

    python tests/golden/beams.py    # writes the searches that the installed transformers has to beams.json

Groups of beams left transformers' core with version 5: they are of 4.46.3, all else of 5.23.0 (torch 2.13, CPU). The
weights are drawn by numpy, so that the file holds settings and findings alone.
"""

import functools
import json
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).with_name("beams.json")
CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 19,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
STOP, PAD = 0, 18  # the padding's id is never allowed: a finished group's padding then costs later groups nothing

# What a program is compiled for; the rest of a case is drawn.
SHAPES = {
    "greedy": [{"num_beams": 1, "max_length": 7, "min_length": 1, "early_stopping": False}],
    "beam": [
        {"num_beams": 3, "max_length": 6, "min_length": 0, "early_stopping": False},
        {"num_beams": 4, "max_length": 8, "min_length": 2, "early_stopping": True},
        {"num_beams": 5, "max_length": 7, "min_length": 1, "early_stopping": "never"},
    ],
    "groups": [
        {"num_beams": 4, "num_beam_groups": 2, "max_length": 6, "min_length": 0, "early_stopping": False},
        {"num_beams": 6, "num_beam_groups": 3, "max_length": 7, "min_length": 1, "early_stopping": True},
        {"num_beams": 4, "num_beam_groups": 4, "max_length": 5, "min_length": 2, "early_stopping": False},
    ],
}


def draw_cases(kind: str, each: int, seed: int = 0) -> list[dict]:
    """`each` settings of every shape of a kind, with two or more prompts of different lengths."""
    rng = np.random.default_rng(seed)
    return [
        shape
        | {
            "kind": kind,
            "weights": int(rng.integers(1_000_000)),
            "prompts": [rng.integers(1, PAD, rng.integers(1, 6)).tolist() for _ in range(3)],
            "allowed": sorted(rng.choice(np.arange(1, PAD), 11, replace=False).tolist()),
            "length_penalty": round(float(rng.uniform(-0.5, 2.0)), 3),
            "diversity_penalty": round(float(rng.uniform(0.1, 1.5)), 3) if kind == "groups" else 0.0,
        }
        for shape in SHAPES[kind]
        for _ in range(each)
    ]


def draw_weights(seed: int) -> dict[str, np.ndarray]:
    """A tiny GPT-2's tensors by transformers' names; their scale makes every token depend on those before it."""
    rng, width = np.random.default_rng(seed), CONFIG["n_embd"]
    shapes = {"wte.weight": (CONFIG["vocab_size"], width), "wpe.weight": (CONFIG["n_positions"], width)}
    norms = ["ln_f"]
    for layer in range(CONFIG["n_layer"]):
        sizes = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
        for name, (inputs, outputs) in sizes.items():
            shapes[f"h.{layer}.{name}.weight"] = (inputs * width, outputs * width)
            shapes[f"h.{layer}.{name}.bias"] = (outputs * width,)
        norms += [f"h.{layer}.ln_1", f"h.{layer}.ln_2"]
    drawn = {name: 0.4 * rng.standard_normal(shape) for name, shape in shapes.items()}
    for name in norms:
        drawn[f"{name}.weight"] = 1 + 0.2 * rng.standard_normal(width)
        drawn[f"{name}.bias"] = 0.4 * rng.standard_normal(width)
    drawn["wte.weight"][STOP] += drawn["ln_f.bias"]  # about half of the completions end before they must
    return {f"transformer.{name}": value.astype(np.float32) for name, value in drawn.items()}


@functools.cache
def torch_model(seed: int):
    """The same tensors in transformers' own model."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(**CONFIG, attn_implementation="eager")).eval()
    left = model.load_state_dict({name: torch.tensor(x) for name, x in draw_weights(seed).items()}, strict=False)
    assert set(left.missing_keys) <= {"lm_head.weight"}, left
    assert not left.unexpected_keys, left
    model.tie_weights()
    return model


def generate(case: dict) -> dict:
    """What transformers finds: every query's completions without their stop, and their scores.

    In a search by groups the penalty on repetitions is the first logits processor and a normalisation the last, so
    that scores would be normalised with the penalty in them. There the constraint is put on the model's own logits.
    """
    import torch

    model, prompts = torch_model(case["weights"]), case["prompts"]
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    forbidden = [i for i in range(CONFIG["vocab_size"]) if i not in (STOP, *case["allowed"])]
    groups = case["kind"] == "groups"
    settings = {"num_beams": case["num_beams"], "num_return_sequences": case["num_beams"]}
    if case["kind"] != "greedy":
        settings |= {key: case[key] for key in ("length_penalty", "early_stopping")}
    if groups:
        settings |= {key: case[key] for key in ("num_beam_groups", "diversity_penalty")}
    else:
        settings |= {"suppress_tokens": forbidden, "min_new_tokens": case["min_length"], "renormalize_logits": True}
    calls = []

    def constrained(module, inputs, logits):
        calls.append(1)
        logits = logits.clone()
        logits[..., forbidden + [STOP] * (len(calls) <= case["min_length"])] = -torch.inf
        return logits

    hook = model.lm_head.register_forward_hook(constrained) if groups else None
    found = model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=case["max_length"] + 1,
        forced_eos_token_id=STOP,
        eos_token_id=STOP,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    if hook is not None:
        hook.remove()
    written = [row[: row.index(STOP)] for row in found.sequences[:, width:].tolist()]
    beams = case["num_beams"]
    out = {"completions": [written[i : i + beams] for i in range(0, len(written), beams)]}
    if case["kind"] != "greedy":
        out["scores"] = found.sequences_scores.double().numpy().round(6).reshape(len(prompts), beams).tolist()
    return out


if __name__ == "__main__":
    import transformers

    kinds = ["groups"] if transformers.__version__.startswith("4.") else ["greedy", "beam"]
    kept = json.loads(PATH.read_text()) if PATH.exists() else {}
    for kind in kinds:
        kept[kind] = [case | generate(case) for case in draw_cases(kind, 4)]
    lines = [f'"{kind}": [\n' + ",\n".join(map(json.dumps, kept[kind])) + "\n]" for kind in SHAPES if kind in kept]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
