r"""Log-likelihoods of two ways of writing, compared at equal length: short sentences are likely whoever writes them.

Sentences are grouped by their length l in tokens, all prompts together. With r(l) the share of the reference's
sentences that have l tokens, and mu(l), mu_ref(l) the mean log p of either side's sentences of that length,

    gain = sum_{l in L} r(l) (mu(l) - mu_ref(l)) / sum_{l in L} r(l)        L: the lengths that both sides have written
    covered = sum_{l in L} r(l)

so that both sides have the reference's lengths: stratification with the reference's weights, where every sentence of
the one side weighs r(l) over its own share of l. The 95 % interval is the percentile bootstrap over prompts, of which
both sides keep the same.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Gain:
    """How much more likely sentences are than the reference's of the same length.

    Attributes:
        gain: nats a sentence; None where no length is common.
        low, high: its interval.
        covered: 0..1, the share of the reference's sentences whose length the other side has written too.
    """

    gain: float | None
    low: float | None
    high: float | None
    covered: float


def gain_at_equal_length(
    log_p: Float[np.ndarray, "M N"],
    lengths: Int[np.ndarray, "M N"],
    reference: Float[np.ndarray, "M K"],
    reference_lengths: Int[np.ndarray, "M K"],
    resamples: int = 1000,
    seed: int = 0,
) -> Gain:
    """Of M prompts, N sentences each, on K sentences of the reference; logarithms in nats."""
    prompts, longest = len(log_p), max(lengths.max(), reference_lengths.max())
    ours, theirs = _by_length(log_p, lengths, longest), _by_length(reference, reference_lengths, longest)
    (gain,), (covered,) = _gain(np.ones((1, prompts)), ours, theirs)
    if np.isnan(gain):
        return Gain(None, None, None, 0.0)
    kept = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    low, high = np.nanpercentile(_gain(kept.astype(float), ours, theirs)[0], [2.5, 97.5])
    return Gain(float(gain), float(low), float(high), float(covered))


Sums = tuple[Float[np.ndarray, "M L"], Float[np.ndarray, "M L"]]


def _by_length(log_p: Float[np.ndarray, "M N"], lengths: Int[np.ndarray, "M N"], longest: int) -> Sums:
    """The sum of log p and the number of each prompt's sentences, by length."""
    of_length = lengths[..., None] == np.arange(longest + 1)
    return (log_p[..., None] * of_length).sum(1), of_length.sum(1).astype(float)


def _gain(
    weight: Float[np.ndarray, "R M"], ours: Sums, theirs: Sums
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """The gain, NaN where no length is common, and the share that is covered, each prompt counting `weight` times."""
    (total, count), (other_total, other_count) = ([weight @ part for part in side] for side in (ours, theirs))
    common = np.where((count > 0) & (other_count > 0), other_count, 0.0)
    difference = total / np.maximum(count, 1) - other_total / np.maximum(other_count, 1)
    covered = common.sum(1)
    gain = np.where(covered > 0, (common * difference).sum(1) / np.maximum(covered, 1), np.nan)
    return gain, covered / other_count.sum(1)
