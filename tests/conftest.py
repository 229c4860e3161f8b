"""Fixtures every test may use."""

import gc
import os
import pathlib
import sys
from collections.abc import Iterator

import pytest

# A persistent compilation cache: the second run of the suite, and every worker after the first, compiles little.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Lets go of a file's compiled programs at its end: those of all files together are gigabytes in a worker."""
    yield
    if "jax" in sys.modules:  # not imported here, where its settings above could come too late
        sys.modules["jax"].clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference material beside the checkout; a test that needs it skips where it is absent."""
    folder = pathlib.Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared (reference vectors, real data) is not beside this checkout")
    return folder
