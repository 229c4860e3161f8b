"""`gfn doctor`: versions, devices, memory, and whether every device computes what it should."""

import importlib.metadata
import os
import pathlib
import platform
import re
from collections.abc import Iterator

from absl import flags

from gfn_jax.commands import cli, shipped
from gfn_jax.studies import plan, pool


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    cli.configure_jax()
    return cli.run(argv, doc, parse, prepare)


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line.

    Raises:
        flags.Error: an unknown flag.
        ValueError: words that are no flag.
    """
    return cli.read(cli.common_flags(), argv, "gfn doctor")


def prepare(values: flags.FlagValues) -> Iterator[str]:
    """Looks, part by part; what is wrong is said at the end.

    Raises:
        RuntimeError: something is, in one line.
    """
    wrong = []
    there = {**plan.versions(), "matplotlib": plan.version("matplotlib")}
    yield "\n".join(f"{name:18}{version}" for name, version in there.items())
    wrong += unmet()
    cores, memory = pool.cores(), pool.machine_gigabytes()
    yield f"machine           {platform.system()} {platform.machine()}, {cores} cores, {memory:.0f} GB"
    yield f"configs           {shipped.folder()}"
    cache = pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
    yield f"cache             {cache}"
    if not writable(cache):
        wrong.append(f"{cache} cannot be written: what is compiled is not kept; set JAX_COMPILATION_CACHE_DIR")

    from gfn_jax.commands import gfn_selftest

    for device in gfn_selftest.devices():
        yield f"device            {gfn_selftest.described(device)}"
        found = gfn_selftest.check(device)
        yield f"  self-test       {found.line}"
        wrong += [f"{device}: {found.fault}"] * (found.fault is not None)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise RuntimeError(f"{wrong[0]}{more}")
    yield "all is well"


def unmet() -> list[str]:
    """What the installed package asks for and this machine has not; nothing where it is not installed."""
    from packaging.requirements import Requirement

    try:
        asked = importlib.metadata.requires("gfn_jax") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for requirement in map(Requirement, asked):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        there = plan.version(requirement.name)
        if not re.match(r"\d", there) or not requirement.specifier.contains(there, prereleases=True):
            found.append(f"{requirement.name} is {there}; gfn_jax needs {requirement.name}{requirement.specifier}")
    return found


def writable(folder: pathlib.Path) -> bool:
    """Whether files can be made in a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
