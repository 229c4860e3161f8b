"""docs/recipes.md says what `--dry_run` says."""

import pathlib

import pytest
from tiny_files import loaded

from gfn_jax.models.chips import chip

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def book():
    return loaded(ROOT / "docs" / "recipes.py")


def test_every_recipe_is_on_the_page_with_its_command(book):
    page = book.PAGE.read_text(encoding="utf-8")
    assert len(book.recipes()) == len(book.MODELS) * len(book.MACHINES)
    for recipe in book.recipes():
        assert f"    {recipe.command}\n" in page
        assert page.count(f"\n| {recipe.model} | ") == len(book.MACHINES)
    for machine in book.MACHINES:
        assert f"## {machine.title}\n" in page
    assert page.startswith(book.INTRODUCTION)
    assert "None of these was run here" in page
    assert page.endswith(book.sources())


@pytest.mark.parametrize(
    ("model", "title"),
    [("SmolLM2-135M", "v5e-8"), pytest.param("GPT-J 6B", "A GPU of 24 GB", marks=pytest.mark.slow)],
)
def test_its_numbers_are_those_of_the_dry_run(book, model, title):
    (recipe,) = [one for one in book.recipes() if (one.model, one.machine.title) == (model, title)]
    page = book.PAGE.read_text(encoding="utf-8")
    assert book.row(recipe) in page[page.index(f"## {title}\n") :]
    plan = book.planned(recipe)
    assert set(plan.flops) <= set(plan.traffic)
    assert plan.mesh["data"] * plan.mesh["fsdp"] * plan.mesh["tensor"] == recipe.machine.devices
    assert sum(plan.memory.values()) < chip(recipe.machine.chip).memory
    # A rollout reads the base once a column and a micro-batch, whatever else it does.
    micro_batches = 4
    assert plan.traffic["rollout"] > micro_batches * plan.shape.horizon * 0.5 * plan.memory["base"]
