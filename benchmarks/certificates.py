"""Do certificates hold? On every target of PosteriorBench, over 100 seeds: results/certificates.json, .md.

    python benchmarks/certificates.py
    python benchmarks/certificates.py --targets=arithmetic --seeds=20

Two policies a target: the base, and a GFlowNet that was trained for `--steps` steps. A certificate of each is made of
`--rows` rows, with `--exact` exact samples and rejection's counts, and once without any. An interval of 95 % should
hold the truth in 95 of 100 seeds; those here are made to hold at any number of rows, and hold more often.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
from typing import Any

import jax

from gfn_jax.bench.coverage import coverage
from gfn_jax.bench.methods import GFLOWNET, make_trainer
from gfn_jax.bench.targets import TARGETS, Size
from gfn_jax.evaluation.report import table

RESULTS = pathlib.Path(__file__).parent / "results"


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--stories260k", default=None)
    parser.add_argument("--vocabulary", type=int, default=32)
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--exact", type=int, default=100)
    parser.add_argument("--proposals", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    size = Size(args.vocabulary, args.queries, args.stories260k)
    found: dict[str, Any] = {}
    rows = []
    for name in args.targets.split(","):
        target = TARGETS[name](size)
        if target is None:
            print(f"{name}: left out, its model is not there", flush=True)
            continue
        trained = make_trainer(GFLOWNET, target, 16, args.steps)(jax.random.key(0)).model
        for policy, model in (("base", target.base), ("GFlowNet", trained)):
            for kind, exact, proposals in (("with exact samples", args.exact, args.proposals), ("without", 0, 0)):
                held = coverage(target, model, args.rows, exact, proposals, args.seeds)
                found[f"{name}, {policy}, {kind}"] = held
                cells = []
                for measure in ("log_z", "kl_q_pi", "kl_pi_q"):
                    one = held.get(measure)
                    width = "-" if one is None else "one-sided" if one["width"] is None else f"{one['width']:.2g}"
                    cells += [
                        "-" if one is None else f"{one['truth']:.3g}",
                        "-" if one is None else str(one["covered"]),
                        width,
                    ]
                rows.append((f"{name}, {policy}, {kind}", *cells))
                print(*rows[-1], flush=True)
    header = ("", "log Z", "held", "width", "KL(q|pi)", "held", "width", "KL(pi|q)", "held", "width")
    device = jax.devices()[0]
    machine = f"{device.platform} {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}"
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("out", "stories260k")}
    lines = [
        f"Of {args.seeds} certificates of {args.rows} rows, {args.exact} exact samples and {args.proposals} proposals, "
        f"how many 95 % intervals held what is true (nats), and their mean width:",
        "",
        "```",
        table(header, rows),
        "```",
        "",
        f"{datetime.date.today().isoformat()}, {machine}: `python benchmarks/certificates.py`",
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"date": datetime.date.today().isoformat(), "machine": machine, "settings": settings, "found": found}
    (args.out / "certificates.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / "certificates.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
