"""Tokenizers of the two common kinds, as small as their point allows, beside the real ones of ../shared."""

import os
import string

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
from transformers import PreTrainedTokenizerFast

WORDS = (
    *("Question", "Answer", "The", "answer", "is", "and", "day", "light", "daylight", "to", "the", "I", "He", "left"),
    *("She", "shop", "It", "was", "over", "full", "of", "praise", "objective", "subjective", "a", "http", "Mr", "J"),
)
NUMBERS = (*(f"{n:02}" for n in range(100)), "100", "1000")
SIGNS = (*"+-=,.!?\"'(", "..", "==", "=-", "--", '."', "\n\n")


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: every byte has a token, a word's token begins with its space, and the end of text begins one too."""
    backend = Tokenizer(models.BPE({}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    whole = [space + piece for piece in (*WORDS, *NUMBERS, *string.digits, *SIGNS) for space in ("", " ")]
    pieces = [backend.pre_tokenizer.pre_tokenize_str(piece)[-1][0] for piece in whole]
    vocab = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces, "<|endoftext|>"])
    backend.model = models.BPE({piece: i for i, piece in enumerate(vocab)}, [], ignore_merges=True)
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, clean_up_tokenization_spaces=False)


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama's: a text begins with a space of its own, and what has no token, as here "=", is written in bytes."""
    special, merges = ("<unk>", "<s>", "</s>"), [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("n", "d")]
    characters = "▁" + string.ascii_letters + string.digits + "+-,.?!:'\""
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *map("".join, merges), *characters]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, clean_up_tokenization_spaces=False)


MADE = {"byte-level": byte_level, "sentencepiece": sentencepiece}
REAL = ("tokenizers/gpt2", "tokenizers/gpt-neox", "models/stories260k")
EVERY = (*MADE, *(pytest.param(name, marks=pytest.mark.reference) for name in REAL))
BYTE_LEVEL, SENTENCEPIECE = (
    (made, pytest.param(real, marks=pytest.mark.reference)) for made, real in zip(MADE, (REAL[0], REAL[2]), strict=True)
)
