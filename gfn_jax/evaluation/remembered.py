"""What a base says is sampled once and remembered: nothing that training changes can alter it.

The file is named by a digest of everything that the samples depend on: the weights themselves, prompts, settings and
seed, the sources of this package, jax and the kind of device. Whatever is different is another file.
"""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import gfn_jax
from gfn_jax.datasets.building import cache_root

Completions = list[list[list[int]]]

_log = logging.getLogger("gfn_jax")


def remembered(sample: Callable[..., Completions], *arguments: Any) -> Completions:
    """`sample(*arguments)`, from the cache where it was asked before.

    Args:
        sample: a pure function of its arguments: token ids `[M][N][length]`.
        arguments: pytrees of arrays, and plain values. With several processes nothing is remembered.
    """
    if jax.process_count() > 1:
        return sample(*arguments)
    path = cache_root() / "completions" / f"{digest(sample.__qualname__, arguments)}.json"
    try:
        found: Completions = json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or not whole
        found = sample(*arguments)
        _keep(path, found)
    else:
        _log.info("the same completions as before, from %s", path)
    return found


def digest(name: str, arguments: Any) -> str:
    """Sixteen hexadecimal digits of the arguments, the package's sources, jax and the device."""
    leaves, structure = jax.tree.flatten(arguments)
    sources = sorted(pathlib.Path(gfn_jax.__file__).parent.rglob("*.py"))
    device = jax.local_devices()[0]
    hashed = hashlib.sha256(f"{name} {jax.__version__} {device.platform} {device.device_kind} {structure}".encode())
    for source in sources:
        hashed.update(source.read_bytes())
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf) if isinstance(leaf, jax.Array | np.ndarray) else None
        hashed.update(repr(leaf if array is None else (array.shape, array.dtype.name)).encode())
        hashed.update(b"" if array is None else array.tobytes())
    return hashed.hexdigest()[:16]


def _keep(path: pathlib.Path, found: Completions) -> None:
    """Writes the file whole; a cache that cannot be written to is said, and costs a repetition."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(found, separators=(",", ":")))
        os.replace(partial, path)
    except OSError as error:
        _log.warning("the base's completions are not remembered: %s", error)
