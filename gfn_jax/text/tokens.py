"""What each token of a tokenizer writes: surface texts, continuations, and the ids made of given characters.

The surface text of a token is what it adds to a text that it is decoded into the middle of,

    surface(i) = decode([anchor, i]) - decode([anchor]),

so that byte-level BPE, SentencePiece with byte fallback and word-level vocabularies answer alike ('Ġ6', '▁6'
are ' 6', '<0x0A>' a newline) and no vocabulary's spelling is parsed here.
Everything is plain Python and numpy, done once, when a run is built.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


def token_strings(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """The surface text of every id, leading space kept; '' for special tokens and bytes that are no text.

    Raises:
        ValueError: the tokenizer is not a fast one, or no token of it is a word or a digit.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer: save it with a tokenizer.json")
    # The backend is asked, because the wrapper's decode may tidy up spaces before punctuation.
    backend, special = tokenizer.backend_tokenizer, set(tokenizer.all_special_ids)
    ids = range(max(tokenizer.get_vocab().values()) + 1)
    alone = backend.decode_batch([[i] for i in ids], skip_special_tokens=True)
    words = (i for i in ids if i not in special and alone[i].isascii() and alone[i].isalnum())
    anchor = next(words, None)
    if anchor is None:
        raise ValueError("the tokenizer has no token that is a word or a digit: is it the right tokenizer.json?")
    head = alone[anchor]
    joined = backend.decode_batch([[anchor, i] for i in ids], skip_special_tokens=True)
    readable = [i not in special and joined[i].startswith(head) and UNDECODABLE not in joined[i] for i in ids]
    return [joined[i][len(head) :] if readable[i] else "" for i in ids]


def encode_after(tokenizer: "PreTrainedTokenizerFast", prefix: str, text: str) -> list[int]:
    """The ids of `text` where it continues `prefix`: encode(prefix + text) without its first encode(prefix).

    Where the prefix's own tokens change once the text follows it (it ends inside a token of the joined text),
    there is no such split, and the text is tokenised by itself. Special tokens are never added.
    """
    head = _encode_prefix(tokenizer, prefix)
    whole = tokenizer(prefix + text, add_special_tokens=False)["input_ids"]
    if tuple(whole[: len(head)]) == head:
        return whole[len(head) :]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@functools.lru_cache(maxsize=64)
def _encode_prefix(tokenizer: "PreTrainedTokenizerFast", prefix: str) -> tuple[int, ...]:
    """Remembered: thousands of texts may continue the same prefix."""
    return tuple(tokenizer(prefix, add_special_tokens=False)["input_ids"])


def stop_token(tokenizer: "PreTrainedTokenizerFast", stop: str) -> int:
    """The id of the token that says `stop`: its surface text after a digit, or a special token's name.

    Raises:
        ValueError: the text is not one token.
    """
    ids = encode_after(tokenizer, "0", stop)
    names = tokenizer.convert_ids_to_tokens(ids)
    # An unknown text is one token too, but not one that says `stop`.
    if len(ids) != 1 or stop not in (names[0], token_strings(tokenizer)[ids[0]]):
        raise ValueError(f"the stop text {stop!r} must be one token of the tokenizer, it is {names}")
    return ids[0]


def allowed_ids(
    tokenizer: "PreTrainedTokenizerFast", characters: str, stop: str, last: str = ""
) -> Int[np.ndarray, " A"]:
    """The sorted ids whose surface text is made of `characters` alone, with the stop token's.

    Left out although their characters are allowed: tokens in which `last` is not the last character ('=-' and '=='
    for '='), since a tool cannot write inside a token; and tokens that hold the text `stop` and more ('..'),
    since Z would then go on behind its own end.

    Args:
        tokenizer: any fast tokenizer.
        characters: all that may be generated, as in "0123456789+-=, .".
        stop: the text of the stop token, a single token after a digit ("." or an end-of-text marker).
        last: the character that hands over to a tool, if any.

    Raises:
        ValueError: a character is in no token that is left, or the stop text is not one token.
    """
    strings, stop_id = token_strings(tokenizer), stop_token(tokenizer, stop)
    alphabet = set(characters)
    allowed = {
        i: text
        for i, text in enumerate(strings)
        if text and alphabet.issuperset(text) and not (last and last in text[:-1]) and stop not in text
    }
    missing = sorted(alphabet - {stop} - set("".join(allowed.values())))
    if missing:
        raise ValueError(f"the tokenizer has no token to write {', '.join(map(repr, missing))} with")
    return np.array(sorted({*allowed, stop_id}), dtype=np.int32)


def pad_token(tokenizer: "PreTrainedTokenizerFast", otherwise: int) -> int:
    """What fills masked positions, never seen: the tokenizer's own id for that, or another where it has none."""
    return otherwise if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
