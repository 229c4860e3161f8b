"""How near a written text is to the one a person wrote: BLEU, GLEU, BERTScore.

    BLEU-n = 100 exp(min(0, 1 - r / h)) (prod_k m_k / h_k)^(1/n)        Papineni et al. 2002, over a whole corpus
    GLEU-n = 100 sum_k m_k / max(sum_k h_k, sum_k r_k)                   Wu et al. 2016, likewise

where, for k = 1..n, h_k and r_k count the k-grams of the written and the reference texts, m_k those of a written text
that its reference has too (each as often as it has it), and h, r are the texts' lengths. No smoothing. Words are runs
of letters and digits, and single punctuation marks; case counts. One reference a text.
"""

import math
import pathlib
import re
from collections import Counter
from collections.abc import Sequence

from gfn_jax.text.loading import check_no_code

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text."""
    return _WORD.findall(text)


def bleu(written: Sequence[str], references: Sequence[str], n: int = 4) -> float:
    """Corpus BLEU in percent; 0 where no n-gram matches."""
    counts = _counts(written, references, n)
    if not all(matched for matched, _, _ in counts):
        return 0.0
    precision = sum(math.log(matched / made) for matched, made, _ in counts) / n
    _, made, wanted = counts[0]
    return 100 * math.exp(min(0.0, 1 - wanted / made) + precision)


def gleu(written: Sequence[str], references: Sequence[str], n: int = 4) -> float:
    """Corpus GLEU in percent."""
    matched, made, wanted = (sum(column) for column in zip(*_counts(written, references, n)))
    return 100 * matched / max(made, wanted, 1)


class BertScore:
    """Mean F1 of BERTScore (Zhang et al. 2020) with an encoder in a local folder; no idf, not rescaled.

    Args:
        folder: a Hugging Face encoder that the user brings; read at once.
        layers: the layer whose states are compared.

    Raises:
        ImportError: the optional package is missing.
        ValueError: the folder holds no such encoder.
    """

    def __init__(self, folder: str, layers: int):
        try:
            import bert_score
        except ImportError:
            raise ImportError(
                "evaluation.bert_folder needs an optional package: pip install bert-score (it brings torch)"
            ) from None
        if not pathlib.Path(folder).is_dir():  # the package would look for it on the network
            raise ValueError(f"evaluation.bert_folder: there is no folder {folder}")
        try:
            check_no_code(
                pathlib.Path(folder), "config.json", "tokenizer_config.json"
            )  # the package would ask for leave
            self._scorer = bert_score.BERTScorer(model_type=folder, num_layers=layers)
        except (OSError, ValueError, AssertionError) as error:
            raise ValueError(f"{folder} holds no encoder of {layers} layers or more: {error}") from error

    def __call__(self, written: Sequence[str], references: Sequence[str]) -> float:
        """The mean over pairs of texts."""
        _, _, f1 = self._scorer.score(list(written), list(references))
        return float(f1.mean())


def _counts(written: Sequence[str], references: Sequence[str], n: int) -> list[tuple[int, int, int]]:
    """For k = 1..n: the k-grams that match, those written, those in the references."""
    pairs = [(words(text), words(reference)) for text, reference in zip(written, references, strict=True)]
    counts = []
    for k in range(1, n + 1):
        grams = [(_grams(text, k), _grams(reference, k)) for text, reference in pairs]
        matched = sum((made & wanted).total() for made, wanted in grams)
        counts.append((matched, sum(made.total() for made, _ in grams), sum(wanted.total() for _, wanted in grams)))
    return counts


def _grams(tokens: Sequence[str], k: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + k]) for i in range(len(tokens) - k + 1))
