"""What a compiled program sends between devices, read off its text (HLO): which collectives, how often, how much.

A device's share of an operation in a group of n devices is counted as rings send it:

    all-gather of S bytes, reduce-scatter of S, all-to-all of S     S (n - 1) / n
    all-reduce of S                                                2 S (n - 1) / n
    collective-permute of S                                         S

An operation in a loop counts as often as the loop runs.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SENT = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_BYTES = {"pred": 1, "f8": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`.
        computation: of the program, that it stands in.
        groups: the devices that speak to each other.
        shapes: (type, sizes) of each array that it gives a device.
        times: how often a run of the program comes by.
        line: of the text.
    """

    kind: str
    computation: str
    groups: list[list[int]]
    shapes: list[tuple[str, list[int]]]
    times: int
    line: str

    @property
    def nbytes(self) -> float:
        """That a device sends in a run of the program."""
        size, n = sum(_BYTES.get(kind, 4) * math.prod(sizes) for kind, sizes in self.shapes), len(self.groups[0])
        share = (n - 1) / n
        once = {"all-reduce": 2 * share * size, "reduce-scatter": share * size * n, "collective-permute": size}
        return self.times * once.get(self.kind, share * size)


def collectives(text: str, devices: int, loops: Mapping[str, int] | None = None) -> list[Collective]:
    """The collective operations of a compiled program.

    Args:
        text: `jax.stages.Compiled.as_text()`.
        devices: of its mesh.
        loops: `jax.named_scope` -> rounds of a loop in it that does not say how often it runs (`while_loop`), but not
            of one within that loop; 1 of all others.
    """
    found: list[Collective] = []
    calls: dict[str, list[tuple[str, int]]] = {}
    computation = entry = ""
    for line in text.splitlines():
        header = re.match(r"^(ENTRY )?%?([\w.\-]+) \(", line)
        if header:
            computation = header[2]
            entry = computation if header[1] else entry
        calls.setdefault(computation, []).extend(_called(line, loops or {}))
        if sent := _SENT.search(line):
            shapes = [(kind, _numbers(sizes)) for kind, sizes in _SHAPE.findall(sent[1])]
            if sent[3] and len(shapes) > 1:  # a started operation's type holds what it takes and what it gives
                shapes = shapes[len(shapes) // 2 :]
            found.append(Collective(sent[2], computation, groups_of(line, devices), shapes, 0, line))
    times = _times(entry, calls)
    return [dataclasses.replace(one, times=times.get(one.computation, 0)) for one in found]


def sent(found: Sequence[Collective]) -> dict[str, float]:
    """Kind -> bytes that a device sends in a run of the program; kinds that are not there are left out."""
    total = {kind: sum(one.nbytes for one in found if one.kind == kind) for kind in KINDS}
    return {kind: size for kind, size in total.items() if size}


def _called(line: str, loops: Mapping[str, int]) -> list[tuple[str, int]]:
    """The computations that a line runs, and how often."""
    if body := re.search(r" while\(.*\bbody=%?([\w.\-]+)", line):
        if rounds := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
            return [(body[1], int(rounds[1]))]
        place = re.search(r'op_name="(.*?)"', line)
        scopes = [scope for scope in loops if place and re.search(rf"/{scope}/while$", place[1])]
        return [(body[1], loops[scopes[0]] if scopes else 1)]
    names = re.findall(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", line)
    for several in re.findall(r"branch_computations=\{(.*?)\}", line):
        names += re.findall(r"%?([\w.\-]+)", several)
    return [(name, 1) for name in names]


def _times(entry: str, calls: dict[str, list[tuple[str, int]]]) -> dict[str, int]:
    """Computation -> how often it is run."""
    total: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        total[name] = total.get(name, 0) + times
        for callee, rounds in calls.get(name, ()):
            visit(callee, times * rounds)

    visit(entry, 1)
    return total


def groups_of(line: str, devices: int) -> list[list[int]]:
    """Which of so many devices speak to each other: XLA writes it in five ways.

    Raises:
        ValueError: in a sixth.
    """
    pairs = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line)
    if pairs:
        return [_numbers(group) for group in pairs[1].split("},{")]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        return _counted(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2])).tolist()
    order = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    named = re.search(r"replica_groups=mesh\[(.*?)\]" + order + r" \{(.*?)\}", line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        ids = _counted(named[2] or str(devices), named[3]).reshape([int(size) for size in sizes.values()])
        over = [list(sizes).index(axis) for axis in re.findall(r"'(\w+)'", named[4])]
        rest = [axis for axis in range(len(sizes)) if axis not in over]
        return ids.transpose(*rest, *over).reshape(-1, math.prod(ids.shape[axis] for axis in over)).tolist()
    if "replica_groups={}" in line:
        return [list(range(devices))]
    raise ValueError(f"the groups of this collective are not understood: {line.strip()[:300]}")


def _numbers(text: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", text)]


def _counted(sizes: str, order: str | None) -> np.ndarray:
    shape = _numbers(sizes)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose(_numbers(order)) if order else ids
