"""The configs that the project ships: where they lie, their presets, and what a name on a command line means.

In a checkout they lie in configs/, beside the package; a wheel has them as gfn_jax/configs (setup.py).
"""

import ast
import difflib
import importlib
import pathlib
import re
import sys
import types
from collections.abc import Iterable

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
ROOM = "configs"
_NAME = re.compile(r"[\w-]+")
_PRESETS = re.compile(r"((?::\w+(?: \([^)]*\))?,? ?)+)(.*)")


def folder() -> pathlib.Path:
    """Where they lie.

    Raises:
        ValueError: nowhere, for the package was installed by other means than its wheel.
    """
    for found in (PACKAGE / ROOM, PACKAGE.parent / ROOM):
        if (found / "arith.py").is_file():
            return found
    raise ValueError(f"the configs are neither in {PACKAGE / ROOM} nor in {PACKAGE.parent / ROOM}")


def shipped() -> dict[str, pathlib.Path]:
    """Name -> file, in the order of their names; seen from the current folder where they lie below it."""
    here = pathlib.Path.cwd()
    paths = sorted(path for path in folder().glob("*.py") if path.stem != "__init__")
    return {path.stem: path.relative_to(here) if path.is_relative_to(here) else path for path in paths}


def resolve(source: str) -> str:
    """FILE:preset of what is named: a shipped config by its bare name, or a file; the preset, if any, is kept.

    Raises:
        ValueError: no shipped config has that name, or that preset.
        FileNotFoundError: no such file.
    """
    name, colon, preset = source.partition(":")
    if not _NAME.fullmatch(name):
        path = pathlib.Path(name).expanduser()
        if not path.is_file():
            beside = nearest(str(path), map(str, path.parent.glob("*.py")))
            raise FileNotFoundError(f"there is no config file {name}{beside}")
        return f"{path}{colon}{preset}"
    files = shipped()
    if name not in files:
        raise ValueError(f"there is no config {name!r}{nearest(name, files) or '; `gfn configs` lists them'}")
    known = presets(files[name])
    if colon and preset not in known:
        meant = nearest(preset, known) or f"; it has {', '.join(known)}"
        raise ValueError(f"{name} has no preset {preset!r}{meant}")
    return f"{files[name]}{colon}{preset}"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for what is misspelt, or nothing where nothing is like it."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def summary(path: pathlib.Path) -> str:
    """The first line of a config file's docstring."""
    return docstring(path).partition("\n")[0]


def presets(path: pathlib.Path) -> dict[str, str]:
    """Preset -> its meaning, in one line, as the file's docstring lists them under "Presets:"; it is not run.

    Names that stand together, `:gpt2, :qwen (0.5B)`, have one meaning.
    """
    found: dict[str, str] = {}
    names: list[str] = []
    for line in docstring(path).partition("Presets")[2].splitlines()[1:]:
        text = line.strip()
        if text and not line.startswith("    "):
            break
        entry = _PRESETS.fullmatch(text) if text.startswith(":") else None
        if entry:
            named = re.findall(r":(\w+)( \([^)]*\))?", entry[1])
            names = [name for name, _ in named]
            found |= {name: " ".join([*([note.strip()] if note else []), entry[2]]).strip() for name, note in named}
        elif text:
            found |= {name: f"{found[name]} {text}".strip() for name in names}
    return found


def docstring(path: pathlib.Path) -> str:
    """Of a Python file, which is not run; empty where it has none, or is no Python."""
    try:
        return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except (SyntaxError, UnicodeDecodeError):
        return ""


def make_importable() -> None:
    """Lets `configs.NAME` be imported, as a config's `task` may name it, wherever the command runs.

    A folder configs/ of the user's own comes first.
    """
    place = str(folder())
    try:
        module = importlib.import_module(ROOM)
    except ImportError:
        module = sys.modules[ROOM] = types.ModuleType(ROOM)
        module.__path__ = []
    if hasattr(module, "__path__") and place not in [str(pathlib.Path(path).resolve()) for path in module.__path__]:
        module.__path__ = [*module.__path__, place]
