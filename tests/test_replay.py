"""The replay buffer against its rules in plain Python, and against what the released code stored and drew.

`golden/replay_buffer.json` was written by the released classes. Differences, all deliberate:

1. Several stored items similar to a new one. Released: the first in the heap's list order decides, which is
   an accident of history (its own trace notes "order dependent"). Here: the nearest, then the lower reward.
   It shows in one micro case (`ORDER_DEPENDENT`) and in scripts marked `order_dependent`; that nothing else
   differs there is tested by running the plain reference with the released order: it gives the released sets.
2. The threshold is compared as in exact decimal arithmetic. Released: in binary floating point, where
   0.07 * 100 > 7.
3. Rows that did not stop and rewards that are not finite are refused: no loss can use them. `golden/` has no
   such row.
4. Fewer items than draws. Released infill: every item once, so fewer rows than asked. Here shapes are static:
   always with replacement, as released next_sentence does.
5. A query without items. Released: (None, None). Here: rows of zeros that are marked not real.
6. The key is the example's number. Released: the text of the prompt, or of query and answer. The scripts are
   run under both keys.
"""

import functools
import heapq
import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein
from scipy import stats

from gfn_jax import replay
from gfn_jax.text.edit_distance import edit_distance
from gfn_jax.types import Rollout, Trajectory

STOP = 0
HORIZON = 20
ORDER_DEPENDENT = "two similar items, the first in heap-list order has a HIGHER reward than the new item"

ADD = jax.jit(replay.add)


@functools.partial(jax.jit, static_argnames=("num", "mode"))
def draw(buffer, key, ids, num, mode, temperature):
    """Items by one mode alone, and which are real."""
    found = replay.sample(buffer, key, ids, num, {mode: 1.0}, temperature)
    return found.trajectory, found.row_mask


def trajectories(rows, horizon=HORIZON, seed=0) -> Trajectory:
    """Rows (tokens, log R where it stopped or at every state, None if it never did), noise where unread."""
    noise = np.random.default_rng(seed)
    column = np.arange(horizon)
    completion = noise.integers(1, 9, (len(rows), horizon))
    log_reward = noise.normal(size=(len(rows), horizon)).astype(np.float32)
    lengths = np.full((len(rows), 1), horizon)
    for row, (tokens, reward) in enumerate(rows):
        completion[row, : len(tokens)] = tokens
        if reward is not None:
            lengths[row] = len(tokens)
            completion[row, len(tokens) :] = STOP
            columns = slice(len(tokens), len(tokens) + 1) if np.ndim(reward) == 0 else slice(0, len(reward))
            log_reward[row, columns] = reward
    tool = noise.random((len(rows), horizon)) < 0.2  # tokens of Z that the policy did not choose
    token_mask = column < lengths
    action_mask = np.where(column < lengths, ~tool, column == lengths)
    rollout = Rollout(
        completion=jnp.asarray(completion, jnp.int32),
        token_mask=jnp.asarray(token_mask),
        action_mask=jnp.asarray(action_mask),
        state_mask=jnp.asarray(action_mask & (noise.random(action_mask.shape) < 0.8)),
        log_behavior=jnp.asarray(noise.normal(size=action_mask.shape), jnp.float32),
    )
    return Trajectory(rollout=rollout, log_reward=jnp.asarray(log_reward))


def contents(buffer, query) -> list:
    """(log R, Z) of every filled slot of a query, in slot order."""
    items = jax.tree.map(lambda x: np.asarray(x[query]), buffer)
    lengths = items.token_mask.sum(-1)
    return [
        (items.priority[slot].item(), tuple(items.completion[slot][: lengths[slot]].tolist()))
        for slot in np.flatnonzero(items.filled)
    ]


def offer(items, item, capacity, tolerance, released_order=False):
    """The rules in plain Python: `items` is a list of (log R, Z, ...), changed in place."""
    reward, tokens = item[:2]
    near = []
    for slot, (level, stored, *_) in enumerate(items):
        distance = Levenshtein.distance(tokens, stored)
        if tokens == stored:
            return
        if distance < Fraction(str(tolerance)) * (len(tokens) + len(stored)):
            near.append((distance, level, slot))
    if near:
        slot = near[0][-1] if released_order else min(near)[-1]
    elif len(items) < capacity:
        (heapq.heappush if released_order else list.append)(items, item)
        return
    else:
        slot = min(range(capacity), key=lambda k: items[k][0])
    if reward > items[slot][0]:
        items[slot] = item
        if released_order:
            heapq.heapify(items)


@pytest.fixture(scope="module")
def golden(golden_folder):
    return json.loads((golden_folder / "replay_buffer.json").read_text())


def filled(offers, capacity=5, tolerance=0.25, horizon=HORIZON, together=False):
    """A buffer of one query to which rows were offered, one at a time or all in one call."""
    buffer = replay.init(1, capacity, horizon)
    for rows in [offers] if together else [[row] for row in offers]:
        buffer = ADD(buffer, jnp.array([0]), trajectories(rows, horizon), tolerance)
    return buffer


# --- edit distance ---


@pytest.mark.parametrize("horizon", [12, 32, 100])  # less than a word, exactly one, four
def test_edit_distance_equals_rapidfuzz(horizon):
    rng = np.random.default_rng(horizon)
    kinds = horizon // 3  # of tokens; so many that carries run through a word without a match
    a, b = rng.integers(0, kinds, (30, 1, horizon)), rng.integers(0, kinds, (1, 40, horizon))
    b[0, :30] = np.where(rng.random((30, horizon)) < 0.7, a[:, 0], b[0, :30])  # pairs that are close, too
    a_length, b_length = rng.integers(0, horizon + 1, (30, 1)), rng.integers(0, horizon + 1, (1, 40))
    a_length[:2, 0], b_length[0, :2] = (0, horizon), (0, horizon)
    got = jax.jit(edit_distance)(a, a_length, b, b_length)
    expected = [
        [Levenshtein.distance(x[:n].tolist(), y[:m].tolist()) for y, m in zip(b[0], b_length[0], strict=True)]
        for x, n in zip(a[:, 0], a_length[:, 0], strict=True)
    ]
    np.testing.assert_array_equal(got, expected)


# --- the rules ---

LONG = (1, 2, 3, 4, 5, 6)
RULES = {  # rows offered to three slots at tolerance 0.25, and those of them that are stored
    "an exact duplicate changes nothing": ([((1, 2, 3), -9.0), ((1, 2, 3), -1.0)], {0}),
    "of near-duplicates the better stays": ([((1, 2, 3, 4), -9.0), ((1, 2, 3, 6), -5.0)], {1}),
    "a worse near-duplicate is dropped": ([((1, 2, 3, 4), -5.0), ((1, 2, 3, 6), -9.0)], {0}),
    "an equal near-duplicate is dropped": ([((1, 2, 3, 4), -5.0), ((1, 2, 3, 6), -5.0)], {0}),
    "the threshold is strict": ([((1, 2, 3, 4), -9.0), ((1, 2, 5, 6), -5.0)], {0, 1}),
    "the nearest of two similar items decides": (
        [(LONG, -9.0), ((1, 2, 3, 9, 9, 9), -5.0), ((1, 2, 3, 4, 9, 9), -7.0)],
        {0, 1},
    ),
    "of equally near items the worse gives way": (
        [((*LONG, 7, 8), -2.0), ((1, 2, 3, 4, 9, 9, 9, 9), -9.0), ((*LONG, 9, 9), -1.0)],
        {0, 2},
    ),
    "the weakest leaves a full queue": (
        [((1, 2), -5.0), ((3, 4), -7.0), ((8, 8), -1.0), ((5, 6), -6.0), ((7, 8), -8.0), ((2, 1), -6.0)],
        {0, 2, 3},
    ),
    "a near-duplicate evicts nobody else": (
        [((1, 2, 3, 4), -9.0), ((5, 6, 7, 8), -7.0), ((8, 8), -1.0), ((5, 6, 7, 9), -6.0)],
        {0, 2, 3},
    ),
    "the empty completion is an item, like no other": ([((), -5.0), ((), -1.0), ((1,), -2.0)], {0, 2}),
    "what did not stop or has no finite reward is refused": (
        [((1, 2), None), ((3, 4), -np.inf), ((5, 6), np.nan), ((7, 8), np.inf), ((9,), -3.0)],
        {4},
    ),
}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_rule(name, together):
    offers, kept = RULES[name]
    padded = offers + [((), None)] * (6 - len(offers))  # one shape for all cases
    buffer = filled(padded, capacity=3, together=together)
    assert {item[::-1] for item in contents(buffer, 0)} == {offers[row] for row in kept}


def test_threshold_does_not_round():
    """0.3 * (25 + 25) is 15, not the 15.000001 of float32: a distance of 15 is outside."""
    a, b = [1] * 25, [1] * 10 + [2] * 15
    assert np.float32(0.3) * np.float32(50) > 15
    assert len(contents(filled([(a, -1.0), (b, -2.0)], tolerance=0.3, horizon=40), 0)) == 2
    assert len(contents(filled([(a, -1.0), ([*b[:-1], 1], -2.0)], tolerance=0.3, horizon=40), 0)) == 1


@pytest.mark.parametrize(("horizon", "tolerance"), [(8, 0.25), (8, 0.1), (40, 0.3)])
def test_random_streams_equal_plain_python(horizon, tolerance):
    """Slot by slot, ties, tools, refusals and untouched queries included; what is stored is as offered."""
    queries, capacity, num = 3, 5, 3
    rng = np.random.default_rng(horizon)
    buffer, expected, offered = replay.init(queries, capacity, horizon), [[] for _ in range(queries)], []
    for call in range(60):
        ids = rng.permutation(queries)[:2]
        rows = []
        for _ in range(2 * num):
            tokens = rng.integers(1, 3, rng.integers(0, horizon)).tolist()
            if offered and rng.random() < 0.5:  # a neighbour of an earlier row
                tokens = [t if rng.random() < 0.85 else 3 for t in offered[rng.integers(len(offered))][0]]
            reward = rng.choice([None, -np.inf, np.nan]) if rng.random() < 0.1 else -0.5 * rng.integers(0, 12)
            rows.append((tokens, reward))
        batch = trajectories(rows, horizon, seed=call)
        for row, (tokens, reward) in enumerate(rows):
            item = jax.tree.map(lambda x, row=row: np.asarray(x[row]), batch)
            offered.append((tokens, item))
            if reward is not None and np.isfinite(reward):
                offer(expected[ids[row // num]], (reward, tuple(tokens), item), capacity, tolerance)
        buffer = ADD(buffer, jnp.asarray(ids), batch, tolerance)
        for query in range(queries):
            assert contents(buffer, query) == [item[:2] for item in expected[query]]
    assert all(len(items) == capacity for items in expected)
    for query, slot in np.ndindex(queries, capacity):
        item = expected[query][slot][2]
        for name in ("completion", "token_mask", "action_mask", "state_mask"):
            np.testing.assert_array_equal(getattr(buffer, name)[query, slot], getattr(item.rollout, name))
        np.testing.assert_array_equal(buffer.log_reward[query, slot], item.log_reward)


def test_distances_in_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    batches = [
        trajectories(
            [(rng.integers(1, 3, rng.integers(0, 8)).tolist(), -float(rng.integers(9))) for _ in range(6)], 8, i
        )
        for i in range(3)
    ]
    ids, buffer = jnp.array([2, 0]), replay.init(3, 4, 8)
    for batch in batches[:2]:
        buffer = ADD(buffer, ids, batch, 0.25)
    whole = ADD(buffer, ids, batches[2], 0.25)
    assert not np.array_equal(whole.priority, buffer.priority)
    monkeypatch.setattr(replay, "PAIRS_AT_ONCE", 20)  # two queries' three rows each: three slots, then one
    blocks = jax.jit(lambda *given: replay.add(*given))(buffer, ids, batches[2], 0.25)
    jax.tree.map(np.testing.assert_array_equal, blocks, whole)


def test_a_full_queue_holds_the_best():
    """Without near-duplicates (tolerance 0) M slots hold the M highest rewards ever offered."""
    rng = np.random.default_rng(0)
    offers = [(tuple(rng.permutation(9)[:6] + 1), float(reward)) for reward in rng.permutation(40)]
    assert len({tokens for tokens, _ in offers}) == 40
    buffer = filled(offers, tolerance=0.0, together=True)
    assert sorted(np.asarray(buffer.priority[0]).tolist()) == [35, 36, 37, 38, 39]


# --- the released classes ---


def released(items) -> set:
    return {(tuple(item["tokens"]), np.float32(item["logreward"]).item()) for item in items}


def test_released_micro_cases(golden):
    different = []
    for case in golden["micro"]:
        buffer = replay.init(1, case["capacity"], HORIZON)
        for step in case["trace"]:
            added = step["added"]
            if "raw_tokens" in added:  # columns after the stop: masks say so here, ids in the released code
                row = (added["raw_tokens"][: added["raw_tokens"].index(STOP)], added["logrewards"])
            else:
                row = (added["tokens"], added["logreward"])
            buffer = ADD(buffer, jnp.array([0]), trajectories([row]), case["sim_tolerance"])
            assert [item[:2] for item in step["infill"]] == [item[:2] for item in step["next_sentence"]]
        expected = {(tuple(item[0]), item[1]) for item in step["infill"]}
        if {item[::-1] for item in contents(buffer, 0)} != expected:
            different.append(case["name"])
    assert len(golden["micro"]) == 19
    assert [name[: len(ORDER_DEPENDENT)] for name in different] == [ORDER_DEPENDENT]


@pytest.mark.parametrize("key", ["next_sentence", "infill"])
@pytest.mark.parametrize("script", range(6))
def test_released_scripts(golden, script, key):
    """Equal sets where the released rule does not hang on the heap's order, explained ones where it does."""
    script = golden["scripts"][script]
    capacity, tolerance = script["capacity"], script["sim_tolerance"]
    keys = list(script["final_heap_order"][key])
    mine, theirs = {k: [] for k in keys}, {k: [] for k in keys}
    buffer = replay.init(4, capacity, HORIZON)
    full = {}
    assert len(script["steps"]) == 60
    for step in script["steps"]:
        prompt = " ".join(map(str, step["prompt"]))
        query = prompt if key == "next_sentence" else f"{step['prompt']}|{step['answer']}"
        rows = [
            (tokens[: tokens.index(STOP)], log_rewards)
            for tokens, log_rewards in zip(step["tokens"], step["logrewards"], strict=True)
        ]
        padded = rows + [((), None)] * (3 - len(rows))
        buffer = ADD(buffer, jnp.array([keys.index(query)]), trajectories(padded), tolerance)
        for tokens, log_rewards in rows:
            item = (np.float32(log_rewards[len(tokens)]).item(), tuple(tokens))
            full[query, *item] = log_rewards
            offer(mine[query], item, capacity, tolerance)
            offer(theirs[query], item, capacity, tolerance, released_order=True)
    for number, query in enumerate(keys):
        stored = contents(buffer, number)
        expected = released(script["final_heap_order"][key][query])
        assert stored == mine[query]
        assert {item[::-1] for item in theirs[query]} == expected
        if not script["order_dependent"]:
            assert {item[::-1] for item in stored} == expected
        for slot, item in enumerate(stored):
            log_rewards = np.float32(full[query, *item])
            np.testing.assert_array_equal(buffer.log_reward[number, slot, : len(log_rewards)], log_rewards)


def test_released_sampling_probabilities(golden):
    assert len(golden["sampling_probabilities"]) == 18
    for case in golden["sampling_probabilities"]:
        free = 50 - len(case["items"])  # one shape for all cases
        priority = jnp.array([item["logreward"] for item in case["items"]] + free * [-jnp.inf])
        for mode, name in (
            ("reward", "infill_probability_if_len_ge_batch"),
            ("uniform", "next_sentence_probability"),
        ):
            expected = [item[name] for item in case["items"]] + free * [0.0]
            got = jax.nn.softmax(replay.sampling_logits(priority, jnp.zeros(len(priority), int), {mode: 1.0}))
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-12)


# --- drawing ---

ITEMS = [((1, 2, 3, 4), -2.0), ((5, 6, 7, 8, 9), -3.0), ((9, 8, 7), -2.5)]


def test_sampling_probabilities_by_hand():
    priority = jnp.array([-2.0, -jnp.inf, -3.0])
    weights = np.exp([-2.0 / 0.5, -3.0 / 0.5])
    for mode, expected in (("reward", weights / weights.sum()), ("uniform", np.array([0.5, 0.5]))):
        got = jax.nn.softmax(replay.sampling_logits(priority, jnp.zeros(3, int), {mode: 1.0}, 0.5))
        np.testing.assert_allclose(got, [expected[0], 0.0, expected[1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("uniform", [1 / 3] * 3), ("reward", [0.506480391055654, 0.1863237232258476, 0.30719588571849843])],
)
def test_draws_follow_the_probabilities(mode, expected):
    buffer = replay.init(3, 5, HORIZON)
    buffer = ADD(buffer, jnp.array([0, 2]), trajectories(ITEMS + ITEMS), 0.25)
    num = 10_000
    drawn, real = draw(buffer, jax.random.key(3), jnp.array([2, 0]), num=num, mode=mode, temperature=1.0)
    assert real.all()
    first = np.asarray(drawn.rollout.completion[:, 0]).reshape(2, num)
    for row in first:
        counts = [(row == tokens[0]).sum() for tokens, _ in ITEMS]
        assert sum(counts) == num
        assert stats.chisquare(counts, num * np.array(expected)).pvalue > 1e-3
    agreement = (first[0] == first[1]).mean()  # queries draw independently
    assert abs(agreement - np.square(expected).sum()) < 0.02
    again, _ = draw(buffer, jax.random.key(3), jnp.array([2, 0]), num=num, mode=mode, temperature=1.0)
    other, _ = draw(buffer, jax.random.key(4), jnp.array([2, 0]), num=num, mode=mode, temperature=1.0)
    np.testing.assert_array_equal(again.rollout.completion, drawn.rollout.completion)
    assert (np.asarray(other.rollout.completion) != np.asarray(drawn.rollout.completion)).any()


def test_what_is_drawn_is_what_was_added():
    """Rows of a query adjacent and whole; a query without items gives rows of zeros that are not real."""
    batch = trajectories(ITEMS)
    buffer = ADD(replay.init(2, 5, HORIZON), jnp.array([1]), batch, 0.25)
    drawn, real = draw(buffer, jax.random.key(0), jnp.array([0, 1]), num=6, mode="reward", temperature=10.0)
    np.testing.assert_array_equal(real, [False] * 6 + [True] * 6)
    assert all(not np.asarray(leaf)[:6].any() for leaf in jax.tree.leaves(drawn))
    source = [[tokens[0] for tokens, _ in ITEMS].index(first) for first in drawn.rollout.completion[6:, 0]]
    assert len(set(source)) > 1
    expected = batch.replace(rollout=batch.rollout.replace(log_behavior=jnp.zeros_like(batch.log_reward)))
    jax.tree.map(lambda got, added: np.testing.assert_array_equal(got[6:], added[np.array(source)]), drawn, expected)


# --- state ---


def test_statistics():
    buffer = replay.init(4, 5, HORIZON)
    assert {name: float(value) for name, value in replay.statistics(buffer, 4).items()} == {
        "filled": 0.0,
        "coverage": 0.0,
        "best_priority": 0.0,
    }
    buffer = ADD(buffer, jnp.array([1, 3]), trajectories([*ITEMS, ((1,), -6.0), ((2,), -9.0), ((), None)]), 0.25)
    got = replay.statistics(buffer, 4)
    assert got["filled"] == 5 / 20
    assert got["coverage"] == 0.5
    assert got["best_priority"] == (-2.0 - 6.0) / 2


@pytest.mark.parametrize(("queries", "room"), [(1, 128), (128, 128), (1047, 1152)])
def test_room_divides_over_devices_and_is_not_counted(queries, room):
    """Slots behind the table of queries are free, and no part of a share."""
    assert replay.padded(queries) == room
    buffer = replay.init(room, 2, 3)
    buffer = buffer.replace(priority=buffer.priority.at[:queries, 0].set(-1.5))
    got = {name: float(value) for name, value in replay.statistics(buffer, queries).items()}
    assert got == {"filled": 0.5, "coverage": 1.0, "best_priority": -1.5}


def test_ids_tolerance_and_temperature_do_not_recompile():
    traced = []

    @jax.jit
    def step(buffer, key, ids, trajectory, tolerance, temperature):
        traced.append(tolerance)
        buffer = replay.add(buffer, ids, trajectory, tolerance)
        return buffer, replay.sample(buffer, key, ids, 2, {"reward": 1.0}, temperature)

    buffer = replay.init(4, 5, HORIZON)
    for call, (ids, tolerance) in enumerate([([0, 1], 0.25), ([3, 2], 0.1), ([2, 0], 0.0)]):
        batch = trajectories(ITEMS + ITEMS, seed=call)
        buffer, _ = step(buffer, jax.random.key(call), jnp.array(ids), batch, tolerance, 1.0 + tolerance)
    assert len(traced) == 1


def test_errors_say_what_is_wrong():
    buffer = replay.init(2, 5, HORIZON)
    with pytest.raises(ValueError, match="20 columns and was offered 3 rows of 20 for 2 queries"):
        replay.add(buffer, jnp.array([0, 1]), trajectories(ITEMS), 0.25)
    with pytest.raises(ValueError, match="20 columns and was offered 3 rows of 8 for 1 queries"):
        replay.add(buffer, jnp.array([0]), trajectories(ITEMS, horizon=8), 0.25)
    with pytest.raises(ValueError, match=r"'best': 1.0\} are of unknown modes; there are reward, recency, uniform"):
        replay.sample(buffer, jax.random.key(0), jnp.array([0]), 2, {"best": 1.0})


def test_a_mixture_of_modes_draws_in_its_shares():
    """Half by R^(1/T), half by age: the mixture of the two distributions, not of their logarithms."""
    priority, drawn_at = jnp.array([-2.0, -jnp.inf, -3.0, -2.5]), jnp.array([0, 0, 7, -1])
    shares = {"reward": 1.5, "recency": 0.5, "uniform": 0.0}
    got = jax.nn.softmax(replay.sampling_logits(priority, drawn_at, shares, 0.5, now=9, recency_steps=3.0))
    reward = np.exp([-4.0, -np.inf, -6.0, -5.0])
    recent = np.exp([-3.0, -np.inf, -2 / 3, -10 / 3])
    np.testing.assert_allclose(got, 0.75 * reward / reward.sum() + 0.25 * recent / recent.sum(), rtol=1e-5)


def test_what_is_drawn_says_how_it_came_there():
    """The chance of its choice, the step that drew it, and its log-probability then; of seeds nothing is known."""
    batch = trajectories(ITEMS)
    log_behavior = jnp.where(batch.rollout.action_mask, -0.25, 0.0)
    batch = batch.replace(rollout=batch.rollout.replace(log_behavior=log_behavior))
    buffer = replay.add(replay.init(2, 5, HORIZON), jnp.array([1]), batch, 0.0, 4)
    buffer = replay.add(buffer, jnp.array([0]), trajectories(ITEMS[:1]), 0.0)
    found = replay.sample(buffer, jax.random.key(0), jnp.array([1, 0]), 8, {"uniform": 1.0})
    assert found.drawn_at.tolist() == 8 * [4] + 8 * [-1]
    np.testing.assert_allclose(found.log_chosen, [*8 * [-np.log(3)], *8 * [0.0]], rtol=1e-6, atol=1e-6)
    actions = found.trajectory.rollout.action_mask.sum(1)
    np.testing.assert_allclose(found.log_behavior[:8], -0.25 * actions[:8])
