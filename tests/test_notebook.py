"""docs/detector.ipynb: its code runs, and what is committed with it came from a run.

Made anew after `bash train.sh`: .venv/bin/jupyter nbconvert --to notebook --execute --inplace docs/detector.ipynb
"""

import json

from places import REPOSITORY
from small_data import untrained_run

from ssd300_vgg16.data.shapes import write_shapes

CELLS = [
    cell
    for cell in json.loads((REPOSITORY / "docs" / "detector.ipynb").read_text())["cells"]
    if cell["cell_type"] == "code"
]


def test_its_code_runs_where_a_run_and_the_shapes_are(tmp_path, monkeypatch, capsys):
    untrained_run(tmp_path / "runs" / "20260101-000000")
    write_shapes(tmp_path / "data" / "shapes", train_images=0, val_images=3, seed=0)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    names: dict = {}
    for cell in CELLS:
        exec("".join(cell["source"]), names)
    assert names["found"]._repr_png_()
    assert "detections on ../data/shapes/val/" in capsys.readouterr().out


def test_what_it_shows_came_from_one_run_of_all_cells():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS[1:] for output in cell["outputs"]]
    assert len(outputs) == len(CELLS) - 1, "one each, but for the first, which loads"
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
