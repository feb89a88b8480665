"""Pages about trainings.

python -I -m ssd300_vgg16.report RUN                 write RUN/run.html anew
python -I -m ssd300_vgg16.report RUN RUN ...         compare runs: options that differ, curves, AP of each class
"""

from pathlib import Path

from ssd300_vgg16.cli import command_line
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import write_atomically
from ssd300_vgg16.report.comparison import as_text, comparison_page, tables
from ssd300_vgg16.training.run_page import read_run, write_run_page

PROGRAM = "python -I -m ssd300_vgg16.report"
COMPARISON = "comparison.html"


def main(arguments: list[str]) -> int:
    """Write the page of a run, or one that compares several; returns the exit status."""
    parser = command_line.Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--to", type=Path, metavar="FILE", help=f"where the comparison goes (default: {COMPARISON}, in this folder)"
    )
    options = parser.parse_args(arguments)
    if options.to:
        if len(options.runs) == 1:
            raise UserError("--to: the page of a run stays in its folder; name several runs to compare them")
        command_line.refuse_as_target(options.to, ".html", "a page")
    target = options.to or Path(COMPARISON)
    try:
        runs = [read_run(folder) for folder in options.runs]
        if len(runs) == 1:
            print(f"written: {write_run_page(options.runs[0])}")
            return 0
        shown = tables(runs)
        print(as_text(runs, shown))
        write_atomically(target, comparison_page(runs, shown))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"these runs are of another version of this package, or not of it at all ({error})") from error
    print(f"\nwritten: {target}")
    return 0
