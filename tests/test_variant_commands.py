"""Each SSD and each kind of data set through the command lines; and trainings whose length is counted in steps."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_data import WIDTH, metrics_without_times, shapes_folder
from voc_files import thing, write_voc, xml
from yolo_files import GOOD, write_yolo

from ssd300_vgg16 import evaluate, infer, train
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.network.variants import SSD512_VOC
from ssd300_vgg16.report.run_page import configuration
from ssd300_vgg16.training import description as of_training
from ssd300_vgg16.training import trainer
from ssd300_vgg16.weights.locate import BEST, LAST
from ssd300_vgg16.weights.model import load_model
from ssd300_vgg16.weights.safetensors_file import read_weights

SETTINGS = ("--width", WIDTH, "-b", 1, "-j", 0, "--device", "cpu", "--print-freq", 1, "--warmup-steps", 0)
HERE = ("-j", 0, "--device", "cpu")


def call(module, *arguments):
    assert module.main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three training images, which are three steps in an epoch of SSD300; and one for validation."""
    return shapes_folder(tmp_path_factory.mktemp("variants"), 3, 1)


@pytest.fixture(scope="module")
def ssd512(data):
    """A run of SSD512 with VOC's default boxes, of two steps."""
    network = ("--model", "ssd512_vgg16", "--default-boxes", "voc", "-b", 2)
    folder = data.parent / "run512"
    call(train, "--data-path", data, *SETTINGS, *network, "--iterations", 2, "--output-dir", folder)
    return folder


def options_of(folder):
    return json.loads((folder / "options.json").read_text())


def rows_of(folder, kind="training"):
    return [row for row in metrics_without_times(folder) if row["kind"] == kind]


def steps_of(folder, kind="training"):
    return [row["step"] for row in rows_of(folder, kind)]


def assert_same_files(path, expected_path):
    actual, expected = load_file(path), load_file(expected_path)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def test_a_run_of_ssd512_says_what_it_is(ssd512):
    assert (options_of(ssd512)["model"], options_of(ssd512)["default_boxes"]) == ("ssd512_vgg16", "voc")
    for name in (BEST, LAST):
        model, description = load_model(ssd512 / name)
        assert description.variant.name == "ssd512_vgg16_voc"
        assert model.layout == SSD512_VOC
    assert steps_of(ssd512) == [1, 2]
    assert all(np.isfinite([row["localization"], row["classification"]]).all() for row in rows_of(ssd512))


def test_a_run_of_ssd512_goes_on(ssd512, tmp_path):
    folder = shutil.copytree(ssd512, tmp_path / "run")
    call(train, "--resume", folder, "--iterations", 3, *HERE)
    assert steps_of(folder) == [1, 2, 3]
    assert load_model(folder / LAST)[1].variant.name == "ssd512_vgg16_voc"


def test_evaluation_inference_and_python_follow_the_file(ssd512, data, tmp_path):
    detector = Detector.load(ssd512 / LAST, "cpu")
    assert detector.model.layout.image_size == 512
    (image,) = (data / "val").iterdir()
    detections = detector(image)
    assert len(detections["boxes"]) == 200
    limits = ("--score-threshold", 0.01, "--max-detections", 200)
    call(infer, image, "--weights", ssd512 / LAST, *limits, "--device", "cpu", "--output-dir", tmp_path / "found")
    rows = json.loads((tmp_path / "found" / "detections.json").read_text())
    np.testing.assert_allclose([row["score"] for row in rows], detections["scores"], atol=1e-5)
    call(evaluate, "--weights", ssd512 / LAST, "--data-path", data, *HERE, "--output-dir", tmp_path / "evaluated")
    evaluated = json.loads((tmp_path / "evaluated" / "coco_metrics.json").read_text())
    assert evaluated == json.loads((ssd512 / "coco_metrics.json").read_text())
    rows = json.loads((tmp_path / "evaluated" / "detections.json").read_text())
    np.testing.assert_allclose([row["score"] for row in rows], detections["scores"], atol=1e-4)


@pytest.mark.long
def test_a_compiled_step_of_ssd512_is_the_eager_one(ssd512, data, tmp_path):
    network = ("--model", "ssd512_vgg16", "--default-boxes", "voc", "-b", 2, "--no-eager")
    call(train, "--data-path", data, *SETTINGS, *network, "--iterations", 1, "--output-dir", tmp_path / "compiled")
    (compiled,), expected = rows_of(tmp_path / "compiled"), rows_of(ssd512)[0]
    for metric in ("localization", "classification", "gradient_norm"):
        assert compiled[metric] == pytest.approx(expected[metric], rel=1e-4)


def counted(data, folder, iterations, *options):
    """A run of SSD300 of so many steps."""
    call(train, "--data-path", data, *SETTINGS, "--iterations", iterations, "--output-dir", folder, *options)
    return folder


@pytest.fixture(scope="module")
def five(data):
    """A run of five steps in one go, into the middle of its second epoch."""
    return counted(data, data.parent / "five", 5, "--lr-steps", 2, 4, "--lr", 1e-3)


def test_a_length_in_steps_is_kept_and_its_end_evaluated(five):
    assert steps_of(five) == [1, 2, 3, 4, 5]
    assert read_weights(five / LAST)[1]["progress"]["step"] == 5
    assert [(row["step"], row["epoch"]) for row in rows_of(five, "evaluation")] == [(3, 1), (5, 2)]
    assert (five / "coco_metrics.json").exists()
    assert (options_of(five)["iterations"], options_of(five)["epochs"]) == (5, None)


def test_milestones_count_steps(five):
    assert [row["lr"] for row in rows_of(five)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


def test_a_finished_run_has_nothing_left_to_do(five, tmp_path, capsys):
    """Though its last epoch is not a whole one."""
    folder = shutil.copytree(five, tmp_path / "run")
    before = [(folder / name).read_bytes() for name in (LAST, "metrics.jsonl")]
    call(train, "--resume", folder, *HERE)
    assert "This run is at its end; --epochs (or --iterations) with a higher number goes on" in capsys.readouterr().out
    assert [(folder / name).read_bytes() for name in (LAST, "metrics.jsonl")] == before


@pytest.mark.parametrize("first", [2, *(pytest.param(epoch, marks=pytest.mark.long) for epoch in (3, 4))])
def test_a_longer_run_goes_on_as_if_it_had_never_ended(five, data, tmp_path, first):
    """Wherever in an epoch it ended: with the images that it had not seen, to the same bits."""
    folder = counted(data, tmp_path / "run", first, "--lr-steps", 2, 4, "--lr", 1e-3)
    assert steps_of(folder) == list(range(1, first + 1))
    assert steps_of(folder, "evaluation")[-1] == first
    call(train, "--resume", folder, "--iterations", 5, *HERE)
    assert_same_files(folder / LAST, five / LAST)
    assert rows_of(folder) == rows_of(five)
    assert steps_of(folder, "evaluation") == sorted({first, 3, 5})


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """The arguments for data in VOC's layout, and the folder of a run on it."""
    folder = tmp_path_factory.mktemp("voc")
    files = {str(number): xml(thing("cat", (5, 5, 40, 30)), file_name=f"{number}.jpg") for number in range(1, 4)}
    data = ("--dataset", "voc", "--data-path", write_voc(folder / "VOC", files, {"train": ["1", "2"], "val": ["3"]}))
    call(train, *data, *SETTINGS, "--epochs", 1, "--output-dir", folder / "run")
    return data, folder / "run"


def test_voc_through_the_command_lines(voc, tmp_path):
    data, run = voc
    assert (options_of(run)["model"], options_of(run)["default_boxes"]) == ("ssd300_vgg16", "voc")
    description = load_model(run / LAST)[1]
    assert (description.num_classes, description.variant.name) == (2, "ssd300_vgg16_voc")
    (evaluation,) = rows_of(run, "evaluation")
    metrics = json.loads((run / "coco_metrics.json").read_text())
    assert {"VOC_mAP", "VOC07_mAP", "AP", "AP50"} <= evaluation.keys()
    assert metrics["voc"]["mAP"] == evaluation["VOC_mAP"]
    call(evaluate, "--weights", run / LAST, *data, "--engine", "oneflow", *HERE, "--output-dir", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "coco_metrics.json").read_text()) == metrics


def test_yolo_through_the_command_lines(tmp_path):
    yolo = write_yolo(tmp_path / "yolo", {"1": GOOD, "2": f"1 0.25 0.5 0.5 1\n{GOOD}"})
    write_yolo(tmp_path / "yolo", {"3": GOOD}, images="images/val")
    run = tmp_path / "run"
    call(train, "--dataset", "yolo", "--data-path", yolo, *SETTINGS, "--epochs", 1, "--output-dir", run)
    description = load_model(run / LAST)[1]
    assert [category.name for category in description.categories] == ["cat", "dog"]
    assert description.variant.name == "ssd300_vgg16_coco"
    (evaluation,) = rows_of(run, "evaluation")
    assert "AP" in evaluation and "VOC_mAP" not in evaluation
    metrics = json.loads((run / "coco_metrics.json").read_text())
    assert "voc" not in metrics and set(metrics["per_class"]) == {"cat", "dog"}
    call(train, "--resume", run, "--epochs", 2, *HERE)
    assert steps_of(run) == [1, 2, 3, 4]


def test_weights_bring_vocs_default_boxes_to_other_data(voc, data, tmp_path, monkeypatch):
    """Unless others are asked for."""
    monkeypatch.setattr(trainer.Trainer, "train", trainer.Trainer._save)
    settings = ("--data-path", data, "--iterations", 1, *SETTINGS, "--output-dir")
    call(train, "--load", voc[1], *settings, tmp_path / "shapes")
    call(train, "--load", tmp_path / "shapes", "--default-boxes", "coco", *settings, tmp_path / "asked")
    variants = [load_model(tmp_path / name / LAST)[1].variant.name for name in ("shapes", "asked")]
    assert variants == ["ssd300_vgg16_voc", "ssd300_vgg16_coco"]


def test_fitted_default_boxes_stay_with_a_run_and_its_weights(voc, data, tmp_path, monkeypatch, capsys):
    """Another version of the package may fit otherwise: a run keeps what it was begun with."""
    monkeypatch.setattr(trainer.Trainer, "train", trainer.Trainer._save)

    def variant_of_run(name, *arguments):
        begun = ("--output-dir", tmp_path / name, *SETTINGS, "--iterations", 1) if arguments[0] != "--resume" else HERE
        call(train, *arguments, *begun)
        return load_model(tmp_path / name / LAST)[1].variant

    fitted = variant_of_run("run", "--data-path", data, "--default-boxes", "fit")
    assert (fitted.name, options_of(tmp_path / "run")["default_boxes"]) == ("ssd300_vgg16_fit", "fit")
    assert re.search(
        r"with a default box of IoU >= 0.5: \d+% by fit, \d+% by coco, \d+% by voc", capsys.readouterr().out
    )
    assert Detector.load(tmp_path / "run" / LAST).model.layout == fitted.layout
    other = variant_of_run("other", *voc[0], "--default-boxes", "fit", "--load", tmp_path / "run")
    assert other.name == fitted.name and other != fitted
    assert "its heads have learnt other default boxes" in capsys.readouterr().out
    monkeypatch.delattr(of_training, "fit")
    assert variant_of_run("run", "--resume", tmp_path / "run") == fitted
    assert variant_of_run("loaded", *voc[0], "--load", tmp_path / "run") == fitted
    assert options_of(tmp_path / "loaded")["default_boxes"] is None
    for name in ("run", "loaded"):
        assert "fitted default boxes" in configuration(options_of(tmp_path / name), {})["Network"]
    (tmp_path / "loaded" / LAST).unlink()
    for checkpoint in (tmp_path / "loaded").glob("*.safetensors"):
        checkpoint.unlink()
    assert variant_of_run("loaded", "--resume", tmp_path / "loaded") == fitted
