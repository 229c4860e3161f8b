"""Studies in Markdown, as GitHub reads it and as a terminal shows it."""

from collections.abc import Iterable

from gfn_jax.studies.cells import Cell, Table


def table(found: Table) -> str:
    """The table, a line of the paper's beneath each row that has one, and footnotes."""
    rows = [["", *map(plain, found.header), "seeds"], ["---"] * (len(found.header) + 2)]
    for line in found.lines:
        mark = f" <sup>{line.note}</sup>" if line.note else ""
        paper = [plain(value) and f"*{plain(value)}*" for value in line.paper]
        if line.cells:
            rows.append([plain(line.title) + mark, *map(_cell, line.cells), line.seeds])
        if line.paper:
            rows.append(["*paper*" if line.cells else f"*{plain(line.title)}*{mark}", *paper, ""])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join([text, *(f"<sup>{i}</sup> {plain(note)}" for i, note in enumerate(found.notes, 1))])


def plain(text: str) -> str:
    """A text as itself: in one line, nothing in it a mark of Markdown but `code`."""
    parts = " ".join(text.split()).split("`")  # every other one is code
    for i, part in enumerate(parts):
        for mark in "|" if i % 2 else "\\|<*":
            part = part.replace(mark, f"\\{mark}")
        parts[i] = part
    return "`".join(parts)


def verbatim(lines: Iterable[str]) -> str:
    """Lines exactly as they are."""
    return "\n".join(f"    {line}" for text in lines for line in (text.splitlines() or [""]))


def _cell(cell: Cell) -> str:
    mean = f"**{cell.mean}**" if cell.leads else cell.mean
    return f"{mean} {cell.interval}".rstrip()
