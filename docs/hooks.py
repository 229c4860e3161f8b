r"""What mkdocs does not do by itself, so that the site needs no network and nothing in it is written twice.

Equations  `$...$` and `$$...$$` become MathML, which browsers draw without a script.
Notebooks  docs/NAME.ipynb becomes the page NAME.md, with the outputs that it was committed with; nothing is executed.
Reference  every room of gfn_jax becomes a page of what its docstrings say (`Apart` is an extension of its reader).
"""

import ast
import html
import json
import pathlib
import re
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gfn_jax"
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
# `low, high: what both are` in a docstring, with the lines that go on further in.
TOGETHER = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)


class Apart(griffe.Extension):
    """Gives fields that a docstring explains together an entry each: the reader knows no other."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called with every object, its docstring not yet parsed."""
        if obj.docstring:
            obj.docstring.value = TOGETHER.sub(
                lambda found: "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", ")),
                obj.docstring.value,
            )


def on_config(config: Any) -> None:
    """The reference's pages behind all others."""
    pages = [{room: f"reference/{room}.md"} for room in rooms()]
    config["nav"].append({"API reference": ["reference/index.md", *pages]})


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made here."""
    for path in sorted((ROOT / "docs").glob("*.ipynb")):
        text = notebook_page(json.loads(path.read_text(encoding="utf-8")))
        note = f'!!! note\n    This page is a notebook, [{path.name}]({path.name} "the file itself").\n\n'
        title, _, rest = text.partition("\n")
        files.append(File.generated(config, f"{path.stem}.md", content=f"{title}\n\n{note}{rest}"))
    for room, modules in rooms().items():
        content = "\n\n".join([f"# {room}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, f"reference/{room}.md", content=content + "\n"))
    files.append(File.generated(config, "reference/index.md", content=reference_index()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to a notebook lead to its page, but where they are titled: those are for the file."""
    return re.sub(r"\]\(([\w./]*)\.ipynb(#[\w-]*)?\)", r"](\1.md\2)", markdown)


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Equations as MathML; one that is wider than a phone scrolls by itself."""

    def drawn(found: re.Match[str]) -> str:
        equation = html.unescape(found[2])
        if found[1] == "div":
            return f'<div style="overflow-x: auto">{convert(equation, display="block")}</div>'
        return convert(equation, display="inline")

    return EQUATION.sub(drawn, content)


def rooms() -> dict[str, dict[str, str]]:
    """Room -> its modules that have something to say -> the first line of it."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(ROOT).with_suffix("").parts
        module = [name for name in names if name != "__init__"]
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if len(module) > 1 and said:
            found.setdefault(module[1], {})[".".join(module)] = said.splitlines()[0]
    return found


def reference_index() -> str:
    """The rooms, and the first line of what each of their modules says."""
    lines = ["# API reference", "", "What the docstrings say, room by room.", ""]
    for room, modules in rooms().items():
        lines += [f"**[{room}]({room}.md)**", ""]
        lines += [f"- [`{module}`]({room}.md#{module}): {plain(said)}" for module, said in modules.items()]
        lines.append("")
    return "\n".join(lines)


def plain(text: str) -> str:
    """A line of a docstring, its code spans aside, as Markdown that shows it as it is."""
    spans = text.split("`")
    spans[::2] = [re.sub(r"([\[\]<>*_$])", r"\\\1", span) for span in spans[::2]]
    return "`".join(spans)


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its texts, its code, and what was printed and drawn."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source:
            parts.append(f"```python\n{source}\n```")
            parts += [shown for output in cell["outputs"] if (shown := output_text(output))]
    return "\n\n".join(parts) + "\n"


def output_text(output: dict[str, Any]) -> str:
    """One output of a cell: a picture, or text."""
    data = output.get("data", {})
    if "image/png" in data:
        return f"![what the cell above draws](data:image/png;base64,{''.join(data['image/png']).replace(chr(10), '')})"
    text = "".join(output.get("text", data.get("text/plain", [])))
    return f"```text\n{ESCAPES.sub('', text).rstrip()}\n```" if text.strip() else ""
