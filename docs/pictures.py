"""Draws the pictures of docs/concepts.md: `python docs/pictures.py` writes docs/pictures/*.svg.

Who sees Z in the packed reward is asked of the library itself, so that the picture cannot differ from it.
"""

import pathlib
import sys
from html import escape

import jax.numpy as jnp
import numpy as np

from gfn_jax.models.layers import KeyValues
from gfn_jax.rewards.posterior import causal, up_to

FOLDER = pathlib.Path(__file__).parent / "pictures"
INK, PALE = "#37474f", "#eceff1"
QUERY, WRITTEN, ANSWER, TOOL, STOP = "#90caf9", "#ffcc80", "#a5d6a7", "#ce93d8", "#ef9a9a"


def box(x: float, y: float, width: float, height: float, fill: str, label: str = "") -> str:
    """A rectangle with a label in its middle."""
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{fill}" stroke="{INK}"/>'
    return shape + (text(x + width / 2, y + height / 2 + 5, label) if label else "")


def text(x: float, y: float, label: str, size: int = 14, anchor: str = "middle") -> str:
    """A line of text."""
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{INK}">{escape(label)}</text>'


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """A straight arrow."""
    return (
        f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" stroke="{INK}" stroke-width="1.5" marker-end="url(#head)"/>'
    )


def picture(width: int, height: int, title: str, *parts: str) -> str:
    """A whole file, on white: it is read on dark pages too."""
    head = '<marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
            f'font-family="sans-serif"><title>{escape(title)}</title>',
            f'<defs>{head}<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def posterior() -> str:
    """X, Z and Y, who reads what, and who writes Z."""
    return picture(
        640,
        210,
        "The policy reads X and writes Z; the frozen model scores X Z Y",
        text(320, 24, "The policy reads X and writes Z"),
        arrow(130, 62, 300, 62),
        text(215, 55, "q(Z | X)", 13),
        box(20, 75, 200, 40, QUERY, "X  6 - 0 - 4 = ?"),
        box(225, 75, 230, 40, WRITTEN, "Z  6 - 0 = 6, 6 - 4 = 2"),
        box(460, 75, 160, 40, ANSWER, "Y  . The answer is 2."),
        f'<path d="M20,128 v10 h600 v-10" fill="none" stroke="{INK}" stroke-width="1.5"/>',
        text(320, 162, "The frozen model reads all of it:  R(Z) = p(X Z Y)"),
        text(320, 190, "Trained, the policy writes every Z as often as R(Z) says:  q(Z | X) = R(Z) / sum of R"),
    )


def flow() -> str:
    """Four states, what leads from one to the next, and the potential, which is level at the optimum."""
    parts = []
    heights = ((30, 58, 22, 44), (40, 40, 40, 40))
    for t in range(4):
        x = 80 + 130 * t
        parts.append(f'<circle cx="{x}" cy="50" r="20" fill="{QUERY}" stroke="{INK}"/>' + text(x, 55, f"s{t}"))
        parts += [arrow(x, 70, x, 104), text(x + 6, 92, "stop", 12, "start"), box(x - 24, 106, 48, 24, STOP, f"R{t}")]
        if t < 3:
            parts += [arrow(x + 20, 50, x + 108, 50), text(x + 64, 42, f"q(z{t})", 12)]
    for row, (label, tops) in enumerate(
        zip(("before training: u differs", "at the optimum: u = log Z everywhere"), heights)
    ):
        base = 230 + 90 * row
        parts.append(text(40, base - 70, label, 13, "start"))
        for t, top in enumerate(tops):
            parts.append(box(56 + 130 * t, base - top, 48, top, ANSWER if row else WRITTEN, f"u{t}"))
        parts.append(f'<line x1="40" y1="{base}" x2="520" y2="{base}" stroke="{INK}"/>')
    return picture(560, 340, "Four states, their rewards, and the potential u", *parts)


def packed() -> str:
    """Who sees whom: three tokens of Z, and Y of three tokens behind each of four prefixes."""
    length, answer, cell = 3, 3, 30
    states, width = np.arange(length + 1), answer - 1
    nothing = jnp.zeros((1, length))
    own = KeyValues(nothing, nothing, jnp.ones((1, length), bool), nothing.astype(int))
    prefixes = np.asarray(up_to(own, jnp.asarray(states)).mask[0])
    blocks = np.kron(np.eye(len(states)), causal(width)[0])
    visible = np.block(
        [[causal(length)[0], np.zeros((length, len(blocks)))], [np.repeat(prefixes, width, axis=0), blocks]]
    )
    offsets = [*range(length), *(state + column for state in states for column in range(width))]
    names = [f"z{t}" for t in range(length)]
    names += [f"y{column}" for _ in range(length + 1) for column in range(answer - 1)]
    fills = [WRITTEN] * length + [ANSWER if block % 2 else "#c8e6c9" for block in range(length + 1) for _ in range(2)]
    left, top = 130, 64
    parts = [text(left + cell * len(names) / 2, 20, "sees (behind the context and X, which all see)")]
    parts.append(text(left - 44, top - 8, "position", 11))
    for i, (name, fill) in enumerate(zip(names, fills)):
        place = top + cell * i
        parts.append(box(left - cell, place, cell, cell, fill, name))
        parts.append(box(left + cell * i, top - cell, cell, cell, fill, name))
        parts.append(text(left - 50, place + 20, f"+{offsets[i]}", 12))
        for j in range(len(names)):
            parts.append(box(left + cell * j, place, cell, cell, fills[j] if visible[i, j] else PALE))
    for block in range(length + 1):
        place = top + cell * (length + 2 * block + 1) + 5
        parts.append(text(66, place, f"Y after {block}", 12, "end"))
    parts.append(text(66, top + cell * 1.5 + 5, "Z", 12, "end"))
    size = left + cell * len(names) + 20
    return picture(size, top + cell * len(names) + 16, "Attention mask of the packed reward", *parts)


def tool() -> str:
    """One completion by who wrote each token, and the automaton that decides it."""
    words = [*"6-0=6,6-4=2."]
    parts, after = [], ""
    for number, word in enumerate(words):
        fill = STOP if word == "." else TOOL if after == "=" else WRITTEN
        parts.append(box(30 + 46 * number, 40, 42, 34, fill, word))
        after = word
    for number, (fill, label) in enumerate(((WRITTEN, "policy"), (TOOL, "calculator"), (STOP, "stop (policy)"))):
        parts += [box(30 + 150 * number, 92, 18, 18, fill), text(56 + 150 * number, 106, label, 13, "start")]
    parts += [
        text(30, 26, "Z, token by token, and who wrote it", 14, "start"),
        box(60, 150, 150, 44, WRITTEN, "policy chooses"),
        box(400, 150, 150, 44, TOOL, "tokens are forced"),
        box(60, 230, 150, 34, STOP, "stop"),
        arrow(210, 162, 398, 162),
        text(304, 154, "“=” behind an expression", 12),
        arrow(400, 184, 212, 184),
        text(306, 200, "the result is written", 12),
        arrow(135, 194, 135, 228),
        text(144, 216, "behind a digit, Z long enough", 12, "start"),
    ]
    return picture(600, 276, "The calculator as an automaton over tokens", *parts)


PICTURES = {"posterior": posterior, "flow": flow, "packed": packed, "tool": tool}


def main() -> int:
    """Writes them."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
