"""Trees of arrays that processes hand each other as files, each of which is whole or not there.

A file is written beside its place and then moved there, so that nobody reads half of one, whoever is killed when. The
folder lies where all processes see it: on one machine, or on a file system that they share.
"""

import os
import pathlib
import re
import zipfile

import jax
import numpy as np

from gfn_jax.types import PyTree


def put(path: pathlib.Path, tree: PyTree) -> None:
    """Writes the arrays of a tree, in the order of its leaves.

    Raises:
        OSError: the machine could not.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, *jax.device_get(jax.tree.leaves(tree)))
    os.replace(partial, path)


def take(path: pathlib.Path, template: PyTree) -> PyTree | None:
    """The tree, as arrays of the host; None while it is not there.

    Args:
        path: of the file.
        template: a tree of the same structure, of arrays or shapes.

    Raises:
        ValueError: it holds other arrays.
        OSError: the machine could not read it.
    """
    leaves, structure = jax.tree.flatten(template)
    try:
        with np.load(path) as file:
            found = [file[name] for name in file.files]
    except FileNotFoundError:
        return None
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in leaves]:
        raise ValueError(f"{path} holds other arrays than this run's: was it written by another version or config?")
    return jax.tree.unflatten(structure, found)


def numbers(folder: pathlib.Path) -> list[int]:
    """The numbers by which files are named, as in 12.npz, in order."""
    names = (re.fullmatch(r"(\d+)\.npz", path.name) for path in folder.iterdir())
    return sorted(int(name[1]) for name in names if name)
