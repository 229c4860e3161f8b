"""Fixtures every test may use."""

import gc
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest
from jaxtyping import install_import_hook

# A persistent compilation cache: the second run of the suite, and every worker after the first, compiles little.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Compiling is most of the suite's time and shapes are tiny: a third of it without optimisation. `make test-slow` and
# `XLA_FLAGS= pytest` compile as users' runs do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

# Where arrays are computed with, the shapes in signatures are held to while the tests run. (Each call costs time: texts
# and worlds are made of so many small ones that the suite would take half as long again.)
ROOMS = (
    *("algorithms", "environments", "evaluation", "models", "objectives", "policy", "replay", "rewards", "samplers"),
    "training",
)
install_import_hook([f"gfn_jax.{room}" for room in ROOMS], "shapes.check")


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Lets go of a file's compiled programs at its end: those of all files together are gigabytes in a worker."""
    yield
    if "jax" in sys.modules:  # not imported here, where its settings above could come too late
        sys.modules["jax"].clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def golden_folder() -> pathlib.Path:
    """The numbers of the paper's released code."""
    return pathlib.Path(__file__).parent / "golden"


ASKED_FOR = ("reference", "scale")  # tests so marked are left out unless `-m` names the mark


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that are to be asked for."""
    unasked = [name for name in ASKED_FOR if name not in config.option.markexpr]
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in unasked)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def tokenizer_named(request: pytest.FixtureRequest) -> Callable:
    """Makes or reads a tokenizer of `tiny_tokenizers.EVERY`."""
    from tiny_tokenizers import MADE

    from gfn_jax.text.loading import load_tokenizer

    return lambda name: MADE[name]() if name in MADE else load_tokenizer(request.getfixturevalue("shared") / name)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real data and tokenizers beside the checkout, for tests marked `reference`."""
    folder = pathlib.Path(__file__).parents[2] / "shared"
    for name in ("data", "tokenizers", "models"):
        if not (folder / name).is_dir():
            pytest.fail(f"tests marked `reference` need the folder {folder / name}, which is not there", pytrace=False)
    return folder
