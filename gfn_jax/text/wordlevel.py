"""Tiny word-level tokenizers: for texts over a list of words, and for arithmetic, where small numbers are tokens too.

Arithmetic (`build_tokenizer`):

A text over the alphabet of the task is cut, left to right, by the first of these patterns that fits:

    " " "-"? number    one of the numbers -largest .. largest, with the space before it
    " "? operator      + - = ?
    " "? word          the words of the template
    one character      a digit (a text's first, or the rest of a larger number), punctuation, newline, space

so " -6" is one token, " - 6" is two, and " 100" is " 10", "0". A token carries the space before it, hence
decoding is concatenation and `decode(encode(text)) == text`; what lies outside the alphabet becomes `<unk>`.
"""

import re
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
OPERATORS = ("+", "-", "=", "?")
WORDS = ("Question", " Question", "Answer", " Answer", "The", " The", " answer", " is")
CHARACTERS = (*"0123456789", ":", ",", ".", "\n", " ")


def build_tokenizer(largest: int = 60) -> PreTrainedTokenizerFast:
    """Builds the tokenizer; `save_pretrained` writes an ordinary Hugging Face folder.

    Args:
        largest: the numbers -largest .. largest are single tokens when a space precedes them.

    Returns:
        A fast tokenizer with `<pad>` (id 0), `<eos>` and `<unk>`; it adds no special token by itself.

    Raises:
        ValueError: `largest` is below 9, so that some digit would be no number.
    """
    if largest < 9:
        raise ValueError(f"largest must be at least 9, got {largest}")
    positive = [f" {number}" for number in range(largest, -1, -1)]  # largest first: " 14" before " 1"
    negative = [f" -{number}" for number in range(largest, 0, -1)]
    operators = [space + operator for operator in OPERATORS for space in (" ", "")]
    return tokenizer_of([*positive, *negative, *operators, *WORDS, *CHARACTERS], _pattern(largest))


def word_tokenizer(words: Iterable[str], starts: Iterable[str], characters: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, each with the space before it.

    Args:
        words: single tokens behind a space.
        starts: words that are also single tokens without one, as a text's first word is.
        characters: single tokens each: punctuation, newline.
    """
    pieces = [*(f" {word}" for word in words), *starts, *characters]
    # Longest first, and a whole word or nothing: " a" is no part of " apple".
    whole = "|".join(re.escape(piece) for piece in sorted(pieces, key=len, reverse=True) if piece[-1].isalnum())
    return tokenizer_of(pieces, rf"(?:{whole})(?![A-Za-z])|[{re.escape(characters)}]")


def tokenizer_of(pieces: Sequence[str], pattern: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are `pieces`, a text being cut by the regular expression `pattern`."""
    vocabulary = {piece: index for index, piece in enumerate([PAD, EOS, UNKNOWN, *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def _pattern(largest: int) -> str:
    """The regular expression that cuts a text into pieces of the vocabulary."""
    numbers = "|".join(str(number) for number in range(largest, 0, -1))
    words = "|".join(WORDS)
    return rf" -?(?:{numbers})| 0| ?[-+=?]|{words}|[0-9:,. \n]"
