"""`gfn compare RUN RUN ...`: runs beside each other, their differences, a plot."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from gfn_jax.commands import cli

if TYPE_CHECKING:
    from gfn_jax.studies.beside import Group
    from gfn_jax.studies.found import Found

TEXT = {
    "metrics": (None, "names of metrics, separated by commas; the first four by default"),
    "out": ("runs/compare", "folder of compare.json, .png and .svg"),
}
SEEDS = "seed-*"
# Of a run's evaluation, beside `protocol.BESIDE`: how many are asked on the way, and which rows are shown too.
SAMPLED = ("beside", "questions", "reviews", "prompts", "stories", "seed")


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    return cli.run(argv, doc, parse, prepare)


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line; `runs` are its bare words, TITLE=FOLDER or FOLDER.

    Raises:
        flags.Error: an unknown flag.
        ValueError: fewer than two runs.
    """
    values = cli.common_flags(TEXT)
    words = values(argv)[1:]
    if not values.help and len(words) < 2:
        raise ValueError(f"{len(words)} runs; name two or more, for instance runs/arith-tiny runs/arith-supervised")
    flags.DEFINE_list("runs", words, "workdirs", flag_values=values)
    return values


def prepare(values: flags.FlagValues) -> Iterator[str]:
    """Reads the runs and holds them against each other; the table is made when it is asked for.

    Raises:
        ValueError: a run has not ended, or the runs are not to be compared, in one line.
    """
    from gfn_jax.studies import beside

    folders = titled(values.runs)
    found = {title: tuple(map(beside.read_found, seeds_of(folder))) for title, folder in folders.items()}
    check_alike([(title, run) for title, runs in found.items() for run in runs])
    groups = [beside.Group(title, runs, beside.own_method(runs[0])) for title, runs in found.items()]
    there = beside.metrics_of(groups[0].runs[0], groups[0].method)
    asked = values.metrics.split(",") if values.metrics else there
    unknown = [name for name in asked if name not in there]
    if unknown:
        raise ValueError(f"{groups[0].title} has no metric {unknown[0]!r}; there are {', '.join(there)}")
    shown = asked if values.metrics else asked[: beside.SHOWN]
    return compare(groups, asked, shown, pathlib.Path(values.out))


def titled(words: Sequence[str]) -> dict[str, pathlib.Path]:
    """Title -> folder; without a title of its own a folder is called as it is written.

    Raises:
        ValueError: two have one title.
    """
    pairs = [word.rpartition("=")[::2] if not pathlib.Path(word).exists() else ("", word) for word in words]
    found = {title or folder: pathlib.Path(folder) for title, folder in pairs}
    if len(found) < len(pairs):
        raise ValueError(f"two runs are called alike, of {', '.join(words)}: write TITLE=FOLDER")
    return found


def seeds_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """A run's folder itself, or those of its seeds that have ended.

    Raises:
        ValueError: there is none.
    """
    if (folder / "results.json").is_file():
        return [folder]
    seeds = sorted(folder.glob(SEEDS), key=lambda path: (len(path.name), path.name))
    ended = [path for path in seeds if (path / "results.json").is_file()]
    if not ended:
        raise ValueError(f"{folder} is no run that has ended: it has no results.json, and no {SEEDS} with one")
    return ended


def check_alike(runs: "Sequence[tuple[str, Found]]") -> None:
    """Raises ValueError where two runs are of different tasks, splits or questions."""
    known = [(title, *asked(run)) for title, run in runs]
    first_title, first, first_questions = known[0]
    for title, facts, questions in known[1:]:
        for key in first.keys() | facts.keys():
            one, other = first.get(key), facts.get(key)
            if one != other:
                raise ValueError(f"{first_title} and {title} differ in {key}: {one!r} and {other!r}")
        for split in first_questions.keys() | questions.keys():
            if first_questions.get(split) != questions.get(split):
                raise ValueError(f"{first_title} and {title} were asked different questions of {split}")


def asked(run: "Found") -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What a run was asked: its task, split, counts of questions; and the questions that it shows, split by split."""
    from gfn_jax.evaluation.report import read_json
    from gfn_jax.studies.beside import own_method
    from gfn_jax.studies.protocol import BESIDE

    own = own_method(run)
    facts: dict[str, Any] = {"task": run.results.get("task"), "report": own}
    values = (run.questions or {}).get(own, {})
    facts |= {f"questions of {metric}": len(row) for metric, row in values.items()}
    config = read_json(run.folder / "config.json")  # of EM and STaR, which are several runs, each has its own
    for key, value in config.get("evaluation", {}).items():
        if key not in (*BESIDE, *SAMPLED):
            facts[f"evaluation.{key}"] = value
    shown: dict[str, list[str]] = {}
    path = run.folder / "samples.jsonl"
    if path.is_file():
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            if sample["question"] not in shown.setdefault(sample["split"], []):
                shown[sample["split"]].append(sample["question"])
    return facts, shown


def compare(
    groups: "Sequence[Group]", metrics: Sequence[str], shown: Sequence[str], out: pathlib.Path
) -> Iterator[str]:
    """Writes compare.json and the plot, and gives what a person reads."""
    from gfn_jax.evaluation.report import write_whole
    from gfn_jax.studies import beside, cells, figures

    first = groups[0].title
    study, found = beside.as_study(groups, metrics)
    out.mkdir(parents=True, exist_ok=True)
    facts = {"runs": {group.title: [str(run.folder) for run in group.runs] for group in groups}}
    rows = beside.as_dict(study, found, first)
    write_whole(out / "compare.json", json.dumps({**facts, "reference": first, "rows": rows}, indent=1) + "\n")
    few, few_found = beside.as_study(groups, shown, "compare", "bars")
    written = [str(out / "compare.json")]
    if figures.available():
        drawn = figures.draw(few, few_found, {})
        if drawn is not None:
            for name, content in (("compare.png", drawn.png), ("compare.svg", drawn.svg)):
                (out / name).write_bytes(content)
                written.append(str(out / name))
    yield "\n".join([beside.page(few, few_found, first), "", cells.legend(few, few_found), "", ", ".join(written)])
