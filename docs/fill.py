"""Puts the numbers of docs/results into README.md and the documents in docs/, where comments ask for them.

    python docs/fill.py            rewrites the documents
    python docs/fill.py --check    fails where one of them differs from docs/results

A block between `<!-- results: table4 -->` and `<!-- end -->` becomes table4.md of a folder in docs/results, where one
has more seeds, or of docs/results; one of `<!-- benchmark: modes -->` becomes benchmarks/results/modes.md. In a line,
`<!-- value: table4; GFlowNet; accuracy_5 --><!-- end -->` becomes that row's and column's mean, `interval:` instead of
`value:` the mean with its interval, and `seeds:` the seeds' own values, in the digits of the table.
"""

import csv
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
BENCHMARKS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"<!-- (results|benchmark|value|interval|seeds): (.*?) -->(.*?)<!-- end -->", re.DOTALL)


def documents() -> list[pathlib.Path]:
    """Those that may ask for numbers."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str, results: pathlib.Path) -> str:
    """A document with the numbers that it asks for.

    Args:
        text: the document.
        results: the folder of a report.

    Raises:
        ValueError: it asks for what the report does not have.
    """

    def answer(match: re.Match) -> str:
        return f"<!-- {match[1]}: {match[2]} -->{_asked(match[1], match[2], results)}<!-- end -->"

    return MARKED.sub(answer, text)


def _asked(kind: str, name: str, results: pathlib.Path) -> str:
    study, *rest = (part.strip() for part in name.split(";"))
    whole = {"results": results, "benchmark": BENCHMARKS}
    file = f"{study}.md" if kind in whole else f"{study}.csv"
    folder = whole.get(kind, results)
    path = next(iter([*folder.glob(f"*/{file}"), *folder.glob(file)]), None)
    if path is None:
        raise ValueError(f"{name!r}: there is no {file} in the results")
    if kind in whole:
        return f"\n{path.read_text(encoding='utf-8')}"
    row, metric = "; ".join(rest[:-1]), rest[-1] if rest else ""
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if (line["row"], line["metric"]) == (row, metric)]
    lines = [line for line in lines if line["value"]]
    if not lines:
        raise ValueError(f"{name!r}: {path.name} has no number of row {row!r}, metric {metric!r}")
    if kind == "seeds":
        return ", ".join(line["shown_value"] for line in lines)
    return lines[0]["shown"] if kind == "interval" else lines[0]["shown"].split(" ")[0]


def main(arguments: list[str]) -> int:
    """Rewrites the documents, or with --check says which differ."""
    differ = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        new = filled(text, RESULTS)
        if new != text:
            differ.append(path.relative_to(ROOT))
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8")
    if "--check" in arguments and differ:
        print(f"error: not what docs/results says: {', '.join(map(str, differ))}; python docs/fill.py", file=sys.stderr)
        return 1
    print(f"{len(differ)} documents rewritten" if differ else "nothing differs")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
