"""What the parts of the suite have in common: options, tables as Markdown, and the answer that the suite reads."""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this tree's package, installed or not


def parser(about: str) -> argparse.ArgumentParser:
    """A parser with --rounds and --json; about: the part's docstring."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=3, help="how often all sides take their turn (default: 3)")
    made.add_argument("--json", action="store_true", help="end with a line of JSON, for benchmarks/suite.py")
    return made


def checked_device(name: str) -> str:
    """The device if it can be used; ends the program with a sentence if not."""
    if name == "cpu":
        return name
    from ssd300_vgg16.devices import resolve_device
    from ssd300_vgg16.errors import UserError

    try:
        return resolve_device(name)
    except UserError as error:
        raise SystemExit(str(error)) from error


def answer(options: argparse.Namespace, title: str, table: str, figures: dict) -> None:
    """Print the table, or with --json all of it in one last line."""
    answer = {"title": title, "table": table, "figures": figures}
    print(json.dumps(answer) if options.json else f"\n{title}\n\n{table}", flush=True)


def rounds(options: argparse.Namespace) -> str:
    """ "3 rounds"."""
    return f"{options.rounds} round{'' if options.rounds == 1 else 's'}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def paragraphs(*texts: str) -> str:
    """Tables and sentences, apart from one another; empty ones are left out."""
    return "\n\n".join(filter(None, texts))


def median(times: Sequence[Sequence[float]]) -> float:
    """The median of all calls of all rounds."""
    return statistics.median(value for values in times for value in values)


def milliseconds(seconds: float | None) -> str:
    """Three figures, for a cell; a dash for None."""
    return "-" if seconds is None else significant(seconds * 1e3)


def significant(value: float | None) -> str:
    """Three figures at the least, without an exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
