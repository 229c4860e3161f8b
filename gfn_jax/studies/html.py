"""The pieces of a page of HTML that needs nothing but itself: nothing is fetched, nothing is run."""

import pathlib
import re
from collections.abc import Iterable
from html import escape

CSS = pathlib.Path(__file__).with_name("page.css")


def document(title: str, body: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: as text.
        body: its parts as HTML; empty ones are left out.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{CSS.read_text()}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


def figure(inline: str, caption: str) -> str:
    """A figure's <svg> with what it shows, in a box of its own."""
    labelled = inline.replace('role="img"', f'role="img" aria-label="{escape(caption)}"', 1)
    return f'<figure><div class="scroll" tabindex="0">{labelled}</div><figcaption>{text(caption)}</figcaption></figure>'


def definitions(entries: Iterable[tuple[str, str]]) -> str:
    """Names, each with its value as HTML."""
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in entries)}</dl>"


def command(words: str) -> str:
    """A command that is broken between its words, where it can be."""
    return f"<pre>{' '.join(f'<span>{escape(word)}</span>' for word in words.split(' '))}</pre>"


def scrolling(header: Iterable[str], rows: Iterable[str], title: str) -> str:
    """A table in a box of its own, which scrolls where the page is narrow."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">{table}</div>'


def details(summary: str, *parts: str) -> str:
    """What is shown on demand."""
    return f"<details><summary>{summary}</summary>{''.join(parts)}</details>"


def text(words: str) -> str:
    """A text as itself, `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(words))
