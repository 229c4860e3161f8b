"""The studies that there are: names that are promised, jobs that the launcher takes, lessons that follow numbers."""

import dataclasses

import pytest

from gfn_jax.commands import reproduce
from gfn_jax.studies import plan
from gfn_jax.studies.lessons import NOTHING, ahead, best, reaches, says, worth
from gfn_jax.studies.study import Interval
from gfn_jax.studies.tables import GROUPS, studies

OF_THE_PAPER = (
    "fig2",
    "fig3",
    "table2",
    "table3",
    "table4",
    "tableB1",
    "tableD4",
    "tableD5",
    "tableE3",
    "tableE4",
    "tableE5",
)


@pytest.fixture(scope="module", params=["tiny", "paper"])
def there(request):
    return studies(request.param, (0, 3))


UNTRAINED = ("prompting", "decoding", "posterior")


def test_every_table_of_the_paper_has_its_twin(there):
    assert set(OF_THE_PAPER) | {"ablations"} | set(GROUPS["compare"]) == set(there)
    for name in OF_THE_PAPER:
        number = name.removeprefix("fig").removeprefix("table").lstrip("BDE")
        assert there[name].paper.endswith(number)


def test_every_row_has_a_run_a_seed_unless_nothing_is_trained(there):
    for study in there.values():
        assert len({row.title for row in study.rows}) == len(study.rows), study.name
        for row in study.rows:
            untrained = row.jobs[0].name.split("/")[:2] in [["arithmetic", what] for what in UNTRAINED]
            assert [job.name.rsplit("-", 1)[1] for job in row.jobs] == ["0", "3"][: 1 if untrained else 2], row.title
            assert row.paper.keys() <= {column.metric for column in study.columns}, row.title
        assert set(study.figure_columns) <= {column.metric for column in study.columns}, study.name


def test_every_job_is_one_that_its_module_takes():
    """Each config is read, with all that a job changes of it; no two jobs do the same."""
    jobs = plan.chosen_jobs(found := studies("tiny", (0,)), tuple(found))
    said = {}
    for job in jobs:
        meaning = (job.module, *job.arguments[:1], str(reproduce.meaning(job)))
        assert meaning not in said, (job.name, said[meaning])
        said[meaning] = job.name


def test_methods_on_arithmetic_are_given_the_same_demonstrations():
    """All of them, those that a reward shows to the base included, whichever way they are used."""
    rows = {row.title: row for row in studies("tiny", (0,))["table4"].rows}
    for title in ("supervised", "STaR", "PPO", "PPO from supervised", "RLOO", "DPO", "GFlowNet"):
        config = reproduce.config_flags(rows[title].jobs[0]).config.arithmetic
        assert config["seed_demonstrations"] + config["reward_shots"] == 50, title


def of(mean: float, *spread: float) -> Interval:
    values = tuple(mean + each for each in spread)
    return Interval(mean, mean + min(spread), mean + max(spread), values)


CELLS = {
    ("A", "accuracy"): of(90.0, -1.0, 0.0, 1.0),
    ("B", "accuracy"): of(80.0, -1.0, 0.0, 1.0),
    ("C, late", "accuracy"): of(89.0, -9.0, 0.0, 9.0),
    ("A", "kl"): of(0.1, -0.01, 0.0, 0.01),
    ("B", "kl"): of(0.2, -0.01, 0.0, 0.01),
}


def test_lessons_follow_the_numbers():
    assert (
        ahead(CELLS, "B", "A", "accuracy", "more", "accuracy")
        == "accuracy: A is ahead, 90 [89, 91] against 80 [79, 81] of B."
    )
    assert "A is ahead" in ahead(CELLS, "A", "B", "kl", "less", "KL")
    assert "cannot be told apart" in ahead(CELLS, "A", "C, late", "accuracy", "more", "accuracy")
    assert (
        best(CELLS, "accuracy", "more", "accuracy")
        == "accuracy: best is A, 90 [89, 91]; not told apart from it: C, late."
    )
    assert "best is C, late" in best(CELLS, "accuracy", "more", "accuracy", within="late")
    early = {key: cell for key, cell in CELLS.items() if key[0] in "AB"}
    assert "best is A, 90 [89, 91]." in best(early, "accuracy", "more", "accuracy")
    assert worth(CELLS, "A", "B", "accuracy", "the vote").startswith("the vote is worth +10.0 points (90 [89, 91]")
    assert "within the intervals" in worth(CELLS, "A", "C, late", "accuracy", "the vote")
    assert "2 of 3 seeds reach" in reaches(CELLS, "A", "kl", "less", 0.1, "0.1 nats")
    assert "every seed reaches" in reaches(CELLS, "A", "kl", "less", 0.12, "0.12 nats")
    assert says(CELLS, "kl", "nats") == "0.1 [0.09, 0.11] nats."


def test_nothing_is_claimed_of_what_was_not_run_or_run_once():
    once = {key: dataclasses.replace(cell, low=None, high=None, seeds=cell.seeds[:1]) for key, cell in CELLS.items()}
    assert "cannot be told apart" in ahead(once, "A", "B", "accuracy", "more", "accuracy")
    asked = {key: dataclasses.replace(cell, questions=((cell.mean,) * 9,)) for key, cell in once.items()}
    assert ahead(asked, "A", "B", "accuracy", "more", "x").endswith("of B (one seed: over its questions alone).")
    assert (
        ahead({}, "A", "B", "accuracy", "more", "x")
        == best({}, "accuracy", "more", "x")
        == says({}, "x", "x")
        == NOTHING
    )
