"""Every word of at most three letters of an alphabet of two, and the policy that samples it as it should."""

import itertools

import numpy as np

from gfn_jax.types import PolicyScores, Rollout, Trajectory

LETTERS, LONGEST = "ab", 3
TEMPERATURE = 0.7
STATES = ["".join(z) for n in range(LONGEST + 1) for z in itertools.product(LETTERS, repeat=n)]
Policy = dict[str, dict[str, float]]  # state -> action, "" being the stop -> log q


def random_log_reward() -> dict[str, float]:
    """Log R of each word."""
    rng = np.random.default_rng(3)
    return {z: rng.normal(-4, 3) for z in STATES}


def exact_policy(log_mass: dict[str, float]) -> tuple[Policy, float]:
    """The policy that is proportional to e^log_mass, and the log of its sum."""
    log_flow, policy = {}, {}
    for z in reversed(STATES):
        flows = {"": log_mass[z]}
        if len(z) < LONGEST:
            flows |= {letter: log_flow[z + letter] for letter in LETTERS}
        log_flow[z] = np.logaddexp.reduce(list(flows.values()))
        policy[z] = {action: flow - log_flow[z] for action, flow in flows.items()}
    return policy, log_flow[""]


def tempered(log_reward: dict[str, float]) -> dict[str, float]:
    """Log of R^(1/T)."""
    return {z: log_r / TEMPERATURE for z, log_r in log_reward.items()}


def changed(policy: Policy, z: str, action: str, by: float) -> Policy:
    """The same, one action's logit being another."""
    logits = policy[z] | {action: policy[z][action] + by}
    total = np.logaddexp.reduce(list(logits.values()))
    return policy | {z: {a: logit - total for a, logit in logits.items()}}


def every_trajectory(log_reward: dict[str, float], policy: Policy) -> tuple[Trajectory, PolicyScores]:
    """One row for each z, everything that may not be read being NaN."""
    shape = (len(STATES), LONGEST + 1)
    arrays = {name: np.full(shape, np.nan) for name in ("log_reward", "log_pf", "log_pterm")}
    token, state, completion = np.zeros(shape, bool), np.zeros(shape, bool), np.full(shape, len(LETTERS))
    for row, z in enumerate(STATES):
        for t, action in enumerate([*z, ""]):
            token[row, t], state[row, t] = action != "", True
            completion[row, t] = LETTERS.index(action) if action else len(LETTERS)
            arrays["log_reward"][row, t] = log_reward[z[:t]]
            arrays["log_pterm"][row, t] = policy[z[:t]][""]
            arrays["log_pf"][row, t] = policy[z[:t]][action]
    rollout = Rollout(completion, token, state, state, np.zeros(shape))
    scores = PolicyScores(arrays["log_pf"], arrays["log_pterm"])
    return Trajectory(rollout, arrays["log_reward"]), scores
