"""The commands that README and docs show, as a reader would type them."""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
# What a command begins with; of what is run, the folder of the environment is no part.
PROGRAM = re.compile(r"(?:\.venv/bin/)?(python -m gfn_jax|python [\w/]+\.py|make\b|gfn |sbatch |launch/|kubectl |pip )")
PLACEHOLDER = re.compile(r"(?<![:A-Z])[A-Z][A-Z0-9_]{2,}|\.\.\.")  # FOLDER, the reader's; not module:NAME


@dataclasses.dataclass(frozen=True)
class Command:
    """A line that may be typed.

    Attributes:
        document: where it stands.
        program: its first words: `python -m gfn_jax.launch`, `make`.
        words: the others.
    """

    document: str
    program: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join([*self.program.split(), *self.words])}"

    @property
    def module(self) -> str | None:
        """What `python -m` runs."""
        return self.program.removeprefix("python -m ") if self.program.startswith("python -m ") else None

    @property
    def open_words(self) -> tuple[str, ...]:
        """Those whose values are the reader's."""
        return tuple(word for word in self.words if PLACEHOLDER.search(word.partition("=")[2] or word))


def documents() -> list[pathlib.Path]:
    """README, and what is written by hand in docs/; results are written by a command, which says its own."""
    folder = ROOT / "docs"
    found = [path for path in sorted(folder.rglob("*.md")) if folder / "results" not in path.parents]
    return [ROOT / "README.md", *found]


def commands() -> list[Command]:
    """Those of all documents, in the order in which they stand, each once a document."""
    found = [
        command_of(path.relative_to(ROOT).as_posix(), line)
        for path in documents()
        for line in code(path.read_text(encoding="utf-8"))
        if PROGRAM.match(line)
    ]
    return list(dict.fromkeys(found))


def code(text: str) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, and code within lines; what a backslash continues is one line."""
    text = re.sub(r"\\\n\s*", " ", text)
    rest, fenced = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            rest.append(line)
    for span in re.findall(r"`([^`]+)`", "\n".join(rest)):
        yield " ".join(span.split())


def command_of(document: str, line: str) -> Command:
    """A line's command, without the comment behind it; of a synopsis, `[--twist=a|b]`, the first choice is taken."""
    words = shlex.split(line, comments=True)
    words[0] = words[0].removeprefix(".venv/bin/")
    length = 1 if words[0] != "python" else 3 if words[1] == "-m" else 2
    chosen = [word.strip("[]").partition("|")[0] if word.startswith("[") else word for word in words[length:]]
    return Command(document, " ".join(words[:length]), tuple(word for word in chosen if word != "..."))
