"""Prompt, completion and answer as tokens that join: what the model sees is X Z Y as one text.

Each part is encoded where it stands, after what precedes it. The tokens of X, Z and Y put together may still differ
from encode(X + Z + Y): a token of the joined text may straddle a seam, and a sampled Z may be spelt in tokens that
the tokenizer would not choose. The model reads the tokens, a person the text; `joining_difference` tells them apart.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from gfn_jax.text.tokens import encode_after

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


# Whether a text begins with a begin-of-text token: as the tokenizer itself has it, always, or never.
Bos = Literal["auto", "yes", "no"]


def leading_ids(tokenizer: "PreTrainedTokenizerFast", bos: Bos = "auto") -> list[int]:
    """The special tokens (a begin-of-text) before a text: the tokenizer's own, or what `bos` makes of them.

    Raises:
        ValueError: a begin-of-text is asked for and the tokenizer has none.
    """
    if bos == "no":
        return []
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    starts = (n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)
    own = whole[: next(starts, 0)]
    if own or bos == "auto":
        return own
    if tokenizer.bos_token_id is None:
        raise ValueError("the tokenizer has no begin-of-text token to put before a text")
    return [tokenizer.bos_token_id]


def encode_prompt(tokenizer: "PreTrainedTokenizerFast", text: str, bos: Bos = "auto") -> list[int]:
    """The ids of a text at the very beginning of what the model sees, leading special tokens included.

    A text without tokens is the begin-of-text (or end-of-text) token, after which the model starts afresh.

    Raises:
        ValueError: the text is empty, or `bos` is yes, and the tokenizer has no such token.
    """
    ids = leading_ids(tokenizer, bos) + encode_after(tokenizer, "", text)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not ids and start is None:
        raise ValueError("a prompt is empty, and the tokenizer has no token to begin a text with")
    return ids or [start]


def encode_answer(tokenizer: "PreTrainedTokenizerFast", prompt: str, answer: str) -> list[int]:
    """The ids of Y behind any Z: encoded once a prompt, after a number that stands for Z.

    Raises:
        ValueError: the answer is empty.
    """
    ids = encode_after(tokenizer, f"{prompt} 1", answer)
    if not ids:
        raise ValueError("the answer is empty; leave it out to reward the stop instead")
    return ids


def decode_after(tokenizer: "PreTrainedTokenizerFast", prefix: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add behind `prefix`, leading space kept, special tokens left out."""
    # The backend is asked, because the wrapper's decode may tidy up spaces before punctuation.
    decode = tokenizer.backend_tokenizer.decode
    head, whole = decode(list(prefix)), decode([*prefix, *ids])
    # A prefix may end inside a character: then the completion has no text of its own behind it.
    return whole[len(head) :] if whole.startswith(head) else decode(list(ids))


def joining_difference(tokenizer: "PreTrainedTokenizerFast", ids: Sequence[int], text: str) -> str | None:
    """Where the ids, put together from parts, differ from the tokens of the joined text; None where they agree.

    Args:
        tokenizer: any fast tokenizer.
        ids: the parts' ids in order, without special tokens in front.
        text: the parts' texts in order.

    Returns:
        The first stretch that differs, as "apart 'a' 'b', joined 'ab'".
    """
    joined = tokenizer(text, add_special_tokens=False)["input_ids"]
    apart = list(ids)
    if apart == joined:
        return None
    shorter = min(len(apart), len(joined))
    begin = next((n for n in range(shorter) if apart[n] != joined[n]), shorter)
    end = next((n for n in range(shorter - begin) if apart[-1 - n] != joined[-1 - n]), shorter - begin)
    stretches = (part[begin : len(part) - end] for part in (apart, joined))
    shown = (" ".join(map(repr, tokenizer.convert_ids_to_tokens(part))) or "nothing" for part in stretches)
    return "apart {}, joined {}".format(*shown)
