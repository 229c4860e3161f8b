"""How different several completions of one prompt are.

    distance = 2 / (N (N - 1)) sum_{i<j} (1 - cos(e_i, e_j))        embeddings e of the N completions of a prompt

averaged over prompts (Hu et al. 2024, section 4.1), and distinct-n, the share of distinct n-grams among all of a
prompt's completions (Li et al. 2016). Embeddings come from a sentence encoder in a folder of the user's, or from the
base itself: the mean of its last hidden states. The two are different scales; a table says which it shows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.types import Tokens


def mean_pairwise_distance(embeddings: Float[np.ndarray, "M N E"]) -> Float[np.ndarray, " M"]:
    """1 - cos, averaged over the pairs of each of M prompts; 0 where there is but one completion."""
    count = embeddings.shape[1]
    if count < 2:
        return np.zeros(len(embeddings))
    norm = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    unit = embeddings / np.where(norm > 0, norm, 1.0)
    cosine = unit @ np.swapaxes(unit, 1, 2)
    above = np.triu_indices(count, 1)
    return 1.0 - cosine[:, above[0], above[1]].mean(1)


def distinct(completions: Sequence[Sequence[int]], n: int) -> float:
    """Distinct n-grams over all n-grams of one prompt's completions; 0 where there is none."""
    grams = [tuple(row[i : i + n]) for row in completions for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


@jax.jit
def mean_hidden_states(model: LanguageModel, text: Tokens, pooled: Array) -> Float[Array, "B E"]:
    """The mean over `pooled` ([B, S]) of the base's last hidden states, each text read by itself."""
    hidden, _ = decoder.prefill(model, text)
    weight = (text.mask & pooled).astype(jnp.float32)[..., None]
    return (hidden.astype(jnp.float32) * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """A sentence encoder in a local folder, read as it is made by the optional package `sentence-transformers`.

    Raises:
        ImportError: the package is missing.
        ValueError: the folder holds no encoder.
    """

    folder: str

    def __post_init__(self):
        _ = self._model

    @functools.cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ImportError(
                "evaluation.encoder needs the optional package sentence-transformers (and torch): pip install "
                "sentence-transformers, or leave the encoder out to measure with the base's hidden states"
            ) from None
        try:
            return SentenceTransformer(self.folder, device="cpu", local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} holds no sentence encoder: {str(error).splitlines()[0]}") from None

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "B E"]:
        """An embedding a text."""
        return np.asarray(self._model.encode(list(texts), show_progress_bar=False))
