"""What the benchmarks' tables and the summary are made of."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]  # what a benchmark found, as JSON can hold it


@dataclass(frozen=True)
class Claim:
    """A line of the summary: a figure of the package and of a peer, of which less is better; unit: "s", "ms", "MiB"."""

    what: str
    ours: float
    peer: str
    theirs: float
    unit: str

    def cells(self) -> list[str]:
        """What, ours, the peer with its figure, and how many times ours that is."""
        scale = 1e3 if self.unit == "ms" else 1.0
        ours, theirs = (f"{significant(value * scale)} {self.unit}" for value in (self.ours, self.theirs))
        return [self.what, ours, f"{theirs}, {self.peer}", significant(self.theirs / self.ours)]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def paragraphs(*texts: str) -> str:
    """Tables and sentences, apart from one another; empty ones are left out."""
    return "\n\n".join(filter(None, texts))


def median(rounds: Iterable[Iterable[float]]) -> float:
    """The median of all calls of all rounds."""
    return statistics.median(value for values in rounds for value in values)


def medians(rows: Iterable[Sequence[float]]) -> list[float]:
    """The median of each column."""
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def significant(value: float | None, scale: float = 1.0) -> str:
    """Three figures at the least, without an exponent; a dash for None."""
    if value is None:
        return "-"
    value *= scale
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def claims_at(figures: Figures, point: object, what: str, unit: str, prefix: str = "") -> Iterator[Claim]:
    """The package against the one peer at a point of {"points": [...], "lines": {PREFIX and side: [...]}}."""
    if point not in figures["points"]:
        return
    place, lines = figures["points"].index(point), figures["lines"]
    peer = next((name for name in lines if name.startswith(prefix) and "this package" not in name), None)
    for name, values in lines.items():
        if peer and name.startswith(f"{prefix}this package") and values[place] and lines[peer][place]:
            engine = name.removeprefix(f"{prefix}this package")
            yield Claim(what + engine, values[place], peer.removeprefix(prefix), lines[peer][place], unit)
