"""Whole documents as token rows for next-token training, one a row."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from gfn_jax.text.joining import leading_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class DocumentRows(NamedTuple):
    """Documents padded on the right.

    Attributes:
        ids: the tokens.
        mask: which of them are no padding.
        cut: how many documents were longer than a row, and lost their end.
    """

    ids: Int[np.ndarray, "documents S"]
    mask: Bool[np.ndarray, "documents S"]
    cut: int


def whole_rows(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", seq_length: int
) -> tuple[Int[np.ndarray, "documents S"], Bool[np.ndarray, "documents S"]]:
    """`document_rows` of texts that must all fit, each with its end: ids and mask.

    Raises:
        ValueError: a document is longer than a row, or the tokenizer cannot write the first one down.
    """
    rows = document_rows(texts, tokenizer, seq_length, end_of_document=True)
    if rows.cut:
        raise ValueError(f"{rows.cut} documents are longer than seq_length, which is {seq_length}")
    if tokenizer.decode(rows.ids[0][rows.mask[0]][:-1]) != texts[0]:
        raise ValueError(f"the tokenizer does not give a document back as it was: {texts[0]!r}")
    return rows.ids, rows.mask


def document_rows(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", seq_length: int, end_of_document: bool
) -> DocumentRows:
    """Encodes documents as prompts are: with the special tokens that the tokenizer puts before a text.

    Args:
        texts: the documents.
        tokenizer: any fast tokenizer.
        seq_length: tokens in a row.
        end_of_document: whether the end-of-text token follows a document; one that is cut has no end.

    Raises:
        ValueError: there is no such token.
    """
    if end_of_document and tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token; set data.end_of_document to False")
    head, tail = leading_ids(tokenizer), [tokenizer.eos_token_id] * end_of_document
    padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = np.full((len(texts), seq_length), padding, np.int32)
    mask, cut = np.zeros(ids.shape, bool), 0
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    for row, tokens in enumerate(encoded):
        document = [*head, *tokens, *tail]
        length = min(len(document), seq_length)
        ids[row, :length], mask[row, :length] = document[:length], True
        cut += len(document) > seq_length
    return DocumentRows(ids, mask, cut)
