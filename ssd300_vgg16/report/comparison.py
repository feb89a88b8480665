"""Several trainings beside one another: options that differ, figures, AP of each class, and curves over one another."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ssd300_vgg16.report.html_page import html_page
from ssd300_vgg16.report.run_page import Run, ap, line, loss, of
from ssd300_vgg16.text import printable

MAX_LETTERS = 40
# Of options.json what says where a run is, and not how it learns.
NOT_COMPARED = {"commands", "output_dir", "resume", "val_images_folder"}
ELSEWHERE = "They were evaluated on different data: what they reached cannot be compared."
OTHERWISE = "They were last evaluated with other tiles, or of them one on mirror images too: that cannot be compared."


class Row(NamedTuple):
    """A value of each run; best: the place of the one that is higher than all others, or None."""

    name: str
    values: list[str]
    best: int | None = None


class Table(NamedTuple):
    title: str
    text: str
    rows: list[Row]


def tables(runs: Sequence[Run]) -> list[Table]:
    """Results, options that differ, and AP by class."""
    comparable = len({run.environment.get("data", {}).get("val", {}).get("sha256") for run in runs}) == 1
    classes = dict.fromkeys(name for run in runs for name in run.per_class)
    # An eval.sh with other tiles, or of mirror images too, may have been the last.
    alike = comparable and len({str((run.metrics.get("tiles"), run.metrics.get("mirror"))) for run in runs}) == 1
    per_class = [_aps(name, [run.per_class.get(name, {}).get("AP") for run in runs], alike) for name in classes]
    text = OTHERWISE if comparable and not alike else "" if classes else "No run is at its end yet."
    return [
        Table("Results", "" if comparable else ELSEWHERE, _results(runs, comparable)),
        Table("Options that differ", "" if (differing := _differing(runs)) else "None does.", differing),
        Table("AP by class", text, per_class),
    ]


def _results(runs: Sequence[Run], comparable: bool) -> list[Row]:
    def last(name: str, value: Callable[[dict], str]) -> Row:
        return Row(name, [value(run.training[-1]) if run.training else "-" for run in runs])

    steps = [f"{run.rows[-1]['step']:,}" if run.rows else "-" for run in runs]
    return [
        _aps("best AP", [max((row["AP"] for row in run.evaluations), default=None) for run in runs], comparable),
        *(
            _aps(f"{name}, last", [run.evaluations[-1][name] if run.evaluations else None for run in runs], comparable)
            for name in ("AP", "AP50")
        ),
        last("loss, last", lambda row: f"{loss(row):.3f}"),
        Row("steps", steps),
        last("images/s, last", lambda row: f"{row['images_per_second']:.3g}"),
        last("waiting for data", lambda row: f"{row['data_wait']:.0%}"),
    ]


def _aps(name: str, values: list[float | None], comparable: bool) -> Row:
    first, second, *_ = sorted((-1 if value is None else value for value in values), reverse=True)
    best = values.index(first) if comparable and first > second >= 0 else None
    return Row(name, [ap(value) for value in values], best)


def _differing(runs: Sequence[Run]) -> list[Row]:
    settings = [_settings(run) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    rows = [Row(name, [each.get(name, "-") for each in settings]) for name in names]
    return [row for row in rows if len(set(row.values)) > 1]


def _settings(run: Run) -> dict[str, str]:
    options = {f"--{name.replace('_', '-')}": value for name, value in run.options.items() if name not in NOT_COMPARED}
    data = {
        f"{split} data": f"{about['images']:,} images, {about['objects']:,} objects ({about['sha256'][:8]})"
        for split, about in run.environment.get("data", {}).items()
    }
    others = {name: run.environment.get(name) for name in ("device", "processes", "git_commit")}
    return {name: _text(value) for name, value in (options | data | others).items()}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)


def as_text(runs: Sequence[Run], shown: Sequence[Table]) -> str:
    """The tables for a terminal, a column a run; the best values are marked."""
    parts = []
    for table in shown:
        rows = [[table.title, *(run.name for run in runs)]]
        for row in table.rows:
            rows.append([row.name, *(f"{value} *" if at == row.best else value for at, value in enumerate(row.values))])
        cells = [[printable(cell, MAX_LETTERS) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        parts.append("\n".join([*lines, table.text] if table.text else lines))
    return "\n\n".join(parts)


def comparison_page(runs: Sequence[Run], shown: Sequence[Table]) -> str:
    """The page that compares the runs."""
    names = [printable(run.name, MAX_LETTERS) for run in runs]

    def chart(title: str, unit: str, rows: Callable[[Run], list[dict]], value: Callable[[dict], float]) -> dict:
        lines = [line(name, rows(run), value) for name, run in zip(names, runs, strict=True)]
        return {"title": title, "unit": unit, "log": unit == "loss", "lines": lines}

    charts = [
        chart("Loss", "loss", lambda run: run.training, loss),
        chart("Average precision on the validation data", "AP", lambda run: run.evaluations, of("AP")),
        chart("Learning rate", "", lambda run: run.training, of("lr")),
        chart("Speed", "images/s", lambda run: run.training, of("images_per_second")),
    ]
    told = [table._asdict() | {"rows": [row._asdict() for row in table.rows]} for table in shown]
    content = {"heading": ", ".join(names), "runs": names, "charts": charts, "tables": told}
    return html_page("run", "Trainings compared", content)
