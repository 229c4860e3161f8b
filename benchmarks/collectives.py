"""What a step of the paper's arithmetic on GPT-J 6B sends between eight chips, mesh by mesh, and what it would take.

    python benchmarks/collectives.py

All of it is what `--dry_run` says of each mesh: formulas (gfn_jax/commands/interconnect.py) and peak figures
(gfn_jax/models/chips.py); nothing is run. Writes collectives.json and collectives.md into `--out`.
"""

import argparse
import json
import math
import pathlib
import time

from gfn_jax.commands import train
from gfn_jax.commands.dry_run import estimate
from gfn_jax.commands.interconnect import total
from gfn_jax.commands.plan import duration, least_seconds, readable
from gfn_jax.models.chips import chip

ROOT = pathlib.Path(__file__).resolve().parents[1]
MESHES = ((8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8))
CHIPS = ("A100", "H100", "H200", "v5e", "v5p", "v6e")


def planned(mesh: tuple[int, int, int]) -> dict:
    """What the dry run says of data x fsdp x tensor devices."""
    axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    words = [f"--config.mesh.{axis}={size}" for axis, size in axes]
    plan = estimate(train.parse(["launch", f"--config={ROOT}/configs/arith.py:paper", *words]).config)
    sent = total(*plan.sent.values())
    memory, seconds = sum(plan.memory.values()), {}
    for name in CHIPS:
        parts = least_seconds(chip(name), math.prod(mesh), plan.flops, plan.traffic, plan.dtype, plan.sent)
        seconds[name] = sum(parts.values()) if memory <= chip(name).memory else None
    return {"mesh": mesh, "memory": memory, "sent": sent, "by_part": plan.sent, "seconds": seconds}


def page(runs: list[dict]) -> str:
    """A line a mesh."""
    kinds = sorted({kind for run in runs for kind in run["sent"]})
    header = ["data x fsdp x tensor", "memory a device", *kinds, *CHIPS]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for run in runs:
        sizes = [readable(run["sent"].get(kind, 0)) for kind in kinds]
        times = ["too large" if run["seconds"][name] is None else duration(run["seconds"][name]) for name in CHIPS]
        cells = [" x ".join(map(str, run["mesh"])), readable(run["memory"]), *sizes, *times]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Plans every mesh."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    out = parser.parse_args().out
    runs = [planned(mesh) for mesh in MESHES]
    facts = {"command": "python benchmarks/collectives.py", "date": time.strftime("%Y-%m-%d"), "runs": runs}
    out.mkdir(parents=True, exist_ok=True)
    (out / "collectives.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / "collectives.md").write_text(page(runs))
    print(page(runs))


if __name__ == "__main__":
    main()
