"""A weighted sum of balance objectives, each with its own normaliser.

    loss = sum_name coefficient_name * total_name / weight_name

over the whole batch. The weights depend on masks and rewards alone, so the step asks for the full batch's first
(`weights`) and then adds up the gradients of `loss(measure(micro-batch), weights)`: micro-batches and devices
change nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from gfn_jax.objectives import prefixes, subtb, trajectory
from gfn_jax.types import PolicyScores, Rollout, Trajectory, Weighted

LOG_Z = ("learnt", "amortised", "frozen")
WHOLE = ("tb", "flowrl", "vargrad", "contrastive", "raptb")  # terms that train every token, wherever Z may stop
OF_LOG_Z = ("tb", "flowrl", "raptb")
OF_PAIRS = ("vargrad", "contrastive")


@struct.dataclass
class Balance:
    """What every objective is computed from.

    Attributes:
        potential: u_t in nats, 0 outside `state_mask`.
        state_mask: the states that may stop.
        terminal_potential: u_n in nats.
        finished: the row stopped of itself.
        row_mask: False drops a row, whatever its arrays hold.
        log_z: log Z of each row's query in nats; None where no term reads it.
        rollout, scores: what the potentials were computed from, for what is no function of them.
        log_reward: log R/T of each completion in nats; 0 where it did not stop.
        log_ratio: log of q now / q behaviour of each completion, without gradient; 0 where that is unknown.
    """

    potential: Float[Array, "B T"]
    state_mask: Bool[Array, "B T"]
    terminal_potential: Float[Array, " B"]
    finished: Bool[Array, " B"]
    row_mask: Bool[Array, " B"]
    log_z: Float[Array, " B"] | None
    rollout: Rollout
    scores: PolicyScores
    log_reward: Float[Array, " B"]
    log_ratio: Float[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which objectives are minimised, and how.

    Attributes:
        terms: (name in `OBJECTIVES`, coefficient) pairs.
        normalization: what SubTB, DB, the full pair and RapTB are divided by, one of `subtb.NORMALIZATIONS`. The
            others have their own weight (finished rows; VarGrad's degrees of freedom; pairs).
        subtb_lambda: SubTB's discount a terminable state.
        window: SubTB's largest distance of a pair in terminable states; None for all pairs.
        huber: the residual (nats) from which every penalty is linear; None for squares.
        samples_per_query: N; rows of one query are adjacent.
        log_z: what log Z of TB, FlowRL and RapTB is: a parameter a query (`learnt`), a head on what the policy makes
            of the prompt (`amortised`), or an estimate from before training (`frozen`).
        log_z_rate: learning rate of log Z, as a multiple of the adapter's.
        log_z_samples: of the base, a query, that a frozen log Z is estimated from.
        ratio_clip: how far FlowRL's importance weights may be from 1.
        contrastive_margin: pairs whose log R/T differ by less (nats) are no pairs of the contrastive term; 0 keeps all.
        imitation_steps: the first that learn, which imitate rows of the buffer instead: for a policy that makes
            nothing of its prompt yet.
        smoothing_steps: at the end of the run, that imitate rows of the buffer instead (Lee et al., arXiv:2405.18540).

    Raises:
        ValueError: an unknown name or a value out of range.
    """

    terms: tuple[tuple[str, float], ...]
    normalization: str
    subtb_lambda: float = 1.0
    huber: float | None = None
    samples_per_query: int = 1
    window: int | None = None
    log_z: str = "learnt"
    log_z_rate: float = 100.0
    log_z_samples: int = 64
    ratio_clip: float = 0.2
    contrastive_margin: float = 0.0
    imitation_steps: int = 0
    smoothing_steps: int = 0

    def __post_init__(self):
        names = [name for name, _ in self.terms]
        for name in names:
            if name not in OBJECTIVES:
                raise ValueError(f"objective {name!r} is unknown; there are {', '.join(OBJECTIVES)}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"objective terms are {names}; at least one is needed, and each at most once")
        if self.normalization not in subtb.NORMALIZATIONS:
            allowed = ", ".join(subtb.NORMALIZATIONS)
            raise ValueError(f"normalization is {self.normalization!r}; it is one of {allowed}")
        if self.subtb_lambda < 0:
            raise ValueError(f"subtb_lambda is {self.subtb_lambda}; it must be at least 0")
        if self.huber is not None and self.huber <= 0:
            raise ValueError(f"huber is {self.huber}; it must be positive, or None for squares")
        for name in names:
            if name in OF_PAIRS and self.samples_per_query < 2:
                raise ValueError(
                    f"{name} needs 2 samples a query or more; samples_per_query is {self.samples_per_query}"
                )
        if self.log_z not in LOG_Z:
            raise ValueError(f"log_z is {self.log_z!r}; it is one of {', '.join(LOG_Z)}")
        if self.log_z == "frozen" and "flowrl" in names:
            raise ValueError(
                "objective.log_z is 'frozen', an estimate of log sum R, which is not the log Z that flowrl needs"
            )
        bounds = [("log_z_samples", 1), ("window", 1), ("contrastive_margin", 0)]
        for name, least in [*bounds, ("imitation_steps", 0), ("smoothing_steps", 0)]:
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not 0 <= self.ratio_clip <= 1:
            raise ValueError(f"ratio_clip is {self.ratio_clip}; it must be from 0 to 1")

    @property
    def imitates(self) -> bool:
        """Whether some steps are likelihood of the buffer's rows."""
        return self.imitation_steps + self.smoothing_steps > 0

    @property
    def needs_log_z(self) -> bool:
        """Whether a term reads log Z."""
        return any(name in OF_LOG_Z for name, _ in self.terms)

    def measure(
        self,
        trajectory: Trajectory,
        scores: PolicyScores,
        reward_temperature: Float[Array, ""] | float,
        row_mask: Bool[Array, " B"],
        log_z: Float[Array, " B"] | None = None,
        log_behavior: Float[Array, " B"] | None = None,
        known: Bool[Array, " B"] | None = None,
    ) -> dict[str, Weighted]:
        """Each term's sum and weight on these rows (whole queries where terms compare the rows of one).

        Args:
            trajectory: the rows.
            scores: of the policy.
            reward_temperature: T.
            row_mask: False drops a row.
            log_z: of each row's query in nats, for `OF_LOG_Z`.
            log_behavior: log q (nats) of each completion under the policy that drew it, for FlowRL; None: unknown.
            known: of which rows it is.

        Raises:
            ValueError: a term reads log Z and `log_z` is None.
        """
        rollout = trajectory.rollout
        states, actions = rollout.state_mask, rollout.action_mask
        flow = subtb.log_flow(trajectory.log_reward, scores.log_pterm, reward_temperature, states)
        u = subtb.potential(flow, scores.log_pf, actions, states)
        u_n, finished = subtb.terminal_potential(u, states, actions, rollout.token_mask)
        stop = rollout.stop & states & row_mask[:, None]
        log_reward = jnp.where(stop, trajectory.log_reward, 0).sum(axis=1) / reward_temperature
        log_ratio = jnp.zeros(u_n.shape, u_n.dtype)
        if log_behavior is not None and known is not None:
            log_q = jax.lax.stop_gradient(jnp.where(actions, scores.log_pf, 0).sum(axis=1))
            log_ratio = jnp.where(known, log_q - log_behavior, 0)
        balance = Balance(u, states, u_n, finished, row_mask, log_z, rollout, scores, log_reward, log_ratio)
        return {name: OBJECTIVES[name](self, balance) for name, _ in self.terms}

    def weights(
        self, trajectory: Trajectory, reward_temperature: Float[Array, ""] | float, row_mask: Bool[Array, " B"]
    ) -> dict[str, Float[Array, ""]]:
        """Each term's weight on these rows, before any score is known."""
        zeros = jnp.zeros(trajectory.rollout.state_mask.shape)
        measured = self.measure(trajectory, PolicyScores(zeros, zeros), reward_temperature, row_mask, zeros[:, 0])
        return {name: term.weight for name, term in measured.items()}

    def loss(self, measured: Mapping[str, Weighted], weights: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
        """The sum of coefficient x total / weight, `weights` being the full batch's; weight 0 adds 0."""
        return jnp.sum(jnp.stack(list(self.shares(measured, weights).values())))

    def shares(
        self, measured: Mapping[str, Weighted], weights: Mapping[str, Float[Array, ""]]
    ) -> dict[str, Float[Array, ""]]:
        """What each term adds to the loss."""
        return {name: c * subtb.ratio(measured[name].total, weights[name]) for name, c in self.terms}


def _subtb(objective: Objective, balance: Balance) -> Weighted:
    return subtb.subtb(
        balance.potential,
        balance.state_mask,
        balance.row_mask,
        normalization=objective.normalization,
        subtb_lambda=objective.subtb_lambda,
        window=objective.window,
        huber=objective.huber,
    )


def _pairs(pairs: Callable[..., Weighted]) -> Callable[[Objective, Balance], Weighted]:
    def term(objective: Objective, balance: Balance) -> Weighted:
        rows = (balance.potential, balance.state_mask, balance.row_mask)
        return pairs(*rows, normalization=objective.normalization, huber=objective.huber)

    return term


def _tb(objective: Objective, balance: Balance) -> Weighted:
    return trajectory.tb(*_rows(balance), _log_z(balance), huber=objective.huber)


def _flowrl(objective: Objective, balance: Balance) -> Weighted:
    actions = jnp.sum(balance.rollout.action_mask, axis=1, dtype=balance.terminal_potential.dtype)
    given = (*_rows(balance), _log_z(balance), actions, balance.log_ratio)
    return trajectory.flowrl(*given, ratio_clip=objective.ratio_clip, huber=objective.huber)


def _vargrad(objective: Objective, balance: Balance) -> Weighted:
    return trajectory.vargrad(*_rows(balance), samples_per_query=objective.samples_per_query, huber=objective.huber)


def _contrastive(objective: Objective, balance: Balance) -> Weighted:
    return trajectory.contrastive(
        *_rows(balance),
        balance.log_reward,
        samples_per_query=objective.samples_per_query,
        margin=objective.contrastive_margin,
        huber=objective.huber,
    )


def _raptb(objective: Objective, balance: Balance) -> Weighted:
    return prefixes.raptb(
        *_rows(balance),
        _log_z(balance),
        balance.scores.log_pf,
        balance.rollout.action_mask,
        normalization=objective.normalization,
        huber=objective.huber,
    )


def _rows(balance: Balance) -> tuple[Float[Array, " B"], Bool[Array, " B"], Bool[Array, " B"]]:
    return balance.terminal_potential, balance.finished, balance.row_mask


def _log_z(balance: Balance) -> Float[Array, " B"]:
    if balance.log_z is None:
        raise ValueError(f"{', '.join(OF_LOG_Z)} need log_z, the log Z of each row's query")
    return balance.log_z


OBJECTIVES: dict[str, Callable[[Objective, Balance], Weighted]] = {
    "subtb": _subtb,
    "db": _pairs(subtb.db),
    "full_pair": _pairs(subtb.full_pair),
    "tb": _tb,
    "flowrl": _flowrl,
    "vargrad": _vargrad,
    "contrastive": _contrastive,
    "raptb": _raptb,
}
