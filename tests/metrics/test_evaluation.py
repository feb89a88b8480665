"""Evaluation: the numbers are pycocotools' own, on the images that could be read, and they are written down."""

import io
import json
import re
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from coco_files import detections_of, pycocotools_of_files
from small_data import run, shapes, shapes_folder, untrained_run
from voc_files import image_set, thing, write_voc, xml

from ssd300_vgg16 import evaluate as command
from ssd300_vgg16.data.coco import load_coco
from ssd300_vgg16.data.voc import load_voc
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.distributed.world import World
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.metrics.coco_ap import STATISTICS
from ssd300_vgg16.metrics.evaluation import Interrupted, evaluate, evaluation_batch_size

IMAGES = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with generated shapes, and two runs below runs/, the newest of which knows nothing."""
    folder = tmp_path_factory.mktemp("evaluation")
    shapes_folder(folder, 1, IMAGES)
    untrained_run(folder / "runs" / "untrained")
    return folder


@pytest.fixture
def data(place, tmp_path):
    """A copy of the data set, to be spoiled."""
    return shutil.copytree(place / "shapes", tmp_path / "shapes")


@pytest.fixture(scope="module")
def evaluated(place):
    process = run("evaluate", "--data-path", "shapes", "-b", 2, "-j", 1, "--device", "cpu", folder=place)
    return process, place / "runs" / "untrained"


def begin_by(detect):
    """As `Detector.begin` is, with all the work left to what it returns."""
    return lambda *batch: partial(detect, *batch)


def measure(detect, dataset, batch_size=2, **options):
    """The evaluation of a detector, without data workers."""
    with WorkerPool(0) as pool:
        return evaluate(begin_by(detect), dataset, 300, batch_size, pool, **options)


def call(place, *arguments):
    """The exit status of the command line with the untrained weights."""
    fixed = ("--weights", place / "runs" / "untrained", "-j", 0, "--device", "cpu")
    return command.main([str(argument) for argument in (*fixed, *arguments)])


def imperfect(dataset):
    """A detector that finds objects a little beside their place, some twice, with random scores, and misses some."""
    rng = np.random.default_rng(0)
    samples = iter(dataset.samples)

    def one(sample):
        chosen = rng.permutation(np.repeat(np.arange(len(sample.labels)), 2))[: len(sample.labels) + 1]
        boxes = (sample.boxes[chosen] + rng.normal(0, 4, (len(chosen), 4))).astype(np.float32)
        scores = np.sort(rng.random(len(chosen)).astype(np.float32))[::-1]
        return {"boxes": boxes, "scores": scores, "labels": sample.labels[chosen]}

    return lambda _, sizes_hw: [one(next(samples)) for _ in sizes_hw]


def perfect(dataset):
    """A detector that finds each object in its place, and nothing else."""
    samples = iter(dataset.samples)

    def detect(images, sizes_hw):
        assert len(images) == len(sizes_hw) > 0
        seen = [next(samples) for _ in sizes_hw]
        return [detections_of(*((0.9, *row) for row in zip(one.labels, one.boxes, strict=True))) for one in seen]

    return detect


def test_what_is_found_is_measured_as_pycocotools_does(place, tmp_path):
    dataset = shapes(place / "shapes", "val")
    evaluation = measure(imperfect(dataset), dataset)
    evaluation.results.write(tmp_path / "detections.json")
    annotations = place / "shapes" / "annotations" / "instances_val.json"
    expected = pycocotools_of_files(annotations, tmp_path / "detections.json")
    assert 0.1 < expected[0] < 0.9, "a case that says something"
    assert [evaluation.metrics.statistics[name] for name, *_ in STATISTICS] == expected


@pytest.mark.parametrize("batch_size", [1, 2, IMAGES, 100])
def test_a_perfect_detector_scores_one(place, batch_size):
    """And data that is not VOC's gets COCO's numbers only."""
    dataset = shapes(place / "shapes", "val")
    evaluation = measure(perfect(dataset), dataset, batch_size)
    assert evaluation.metrics.statistics["AP"] == pytest.approx(1)
    assert evaluation.table() == evaluation.metrics.table() and "AP50    1.000" in evaluation.summary()
    assert evaluation.voc is None and "voc" not in evaluation.as_json()
    for name, (ap, _, objects) in evaluation.metrics.per_class.items():
        assert ap == pytest.approx(1 if objects else -1), name
    assert evaluation.unreadable == []


@pytest.mark.parametrize("batch_size", [1, 2])
def test_unreadable_images_are_left_out_of_the_numbers_and_named(data, batch_size):
    dataset = shapes(data, "val")
    broken = dataset.samples[1].path
    broken.write_bytes(b"")
    readable = [sample for sample in dataset.samples if sample.path != broken]

    evaluation = measure(perfect(replace(dataset, samples=readable)), dataset, batch_size)
    assert evaluation.metrics.statistics["AP"] == pytest.approx(1)
    assert {result["image_id"] for result in evaluation.results} == {sample.id for sample in readable}
    assert evaluation.unreadable == [f"{broken}: the file is empty"]


def changed_annotations(data, horses=0, **fields):
    """Every annotation of val gets these fields, and the first few (None: all) become horses; the data set."""
    file = data / "annotations" / "instances_val.json"
    document = json.loads(file.read_text())
    document["categories"].append({"id": 999, "name": "horse"})
    for entry in document["annotations"]:
        entry.update(fields)
    for entry in document["annotations"][:horses]:
        entry["category_id"] = 999
    known = shapes(data, "val").categories
    file.write_text(json.dumps(document))
    return load_coco(file, data / "val", known)


def test_why_there_is_nothing_to_find_is_said(place, data, tmp_path, capsys):
    dataset = changed_annotations(data, horses=2, iscrowd=1)
    objects = sum(len(sample.labels) for sample in dataset.samples)
    evaluation = measure(perfect(dataset), dataset)
    said = (
        f"none of the {objects} objects of {dataset.name} counts: all are crowds; "
        "left out, as the model lacks their classes: 'horse' (2 objects)"
    )
    assert evaluation.as_json()["AP"] == -1
    assert evaluation.table().splitlines()[-1] == f"AP is -1: {said}"
    assert evaluation.summary() == f"  AP not measured: {said}"
    # And by the command.
    assert call(place, "--data-path", data, "--output-dir", tmp_path / "out") == 0
    output = capsys.readouterr().out
    assert "AP is -1: none of the " in output and "left out, as the model lacks their classes: 'horse'" in output
    assert "F1 is best" not in output


def test_images_without_objects_have_nothing_to_find(data):
    dataset = shapes(data, "val")
    first = dataset.samples[0]
    none = np.zeros(len(first.labels), dtype=bool)
    columns = {name: getattr(first, name)[none] for name in ("boxes", "labels", "crowd", "areas", "difficult")}
    dataset = replace(dataset, samples=(replace(first, **columns),))
    assert f"AP is -1: {dataset.name} has no objects" in measure(perfect(dataset), dataset).table()


def test_difficult_objects_alone_are_nothing_to_find(tmp_path):
    difficult = "<difficult>1</difficult>"
    folder = write_voc(tmp_path, {"1": xml(thing(more=difficult), thing("dog", more=difficult))}, {"val": ["1"]})
    dataset = load_voc([image_set(folder, "val")])
    assert "none of the 2 objects of" in (table := measure(perfect(dataset), dataset).table())
    assert table.endswith("val.txt counts: all are difficult")


def test_an_unreadable_image_stops_a_strict_evaluation_and_none_any(data):
    dataset = shapes(data, "val")
    dataset.samples[1].path.write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty"):
        measure(perfect(dataset), dataset, strict=True)
    for sample in dataset.samples:
        sample.path.write_bytes(b"")
    ends = evaluate_together(2, by_content(dataset, []), dataset, 2)
    with pytest.raises(UserError) as alone:
        measure(perfect(dataset), dataset)
    for end in (alone.value, *ends):
        assert f"{dataset.name}: not one of its 5 images could be read" in str(end)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_not_kept(place, workers):
    """Only the batch at hand is there: an evaluation of many images takes no more memory for it."""
    dataset, seen = shapes(place / "shapes", "val"), []
    find = by_content(dataset, [])

    def detect(images, sizes_hw):
        seen.append(weakref.ref(images))
        assert [number for number, ref in enumerate(seen) if ref() is not None] == [len(seen) - 1]
        return find(images, sizes_hw)

    with WorkerPool(workers) as pool:
        assert len(evaluate(begin_by(detect), dataset, 300, 1, pool).results)
    assert len(seen) == IMAGES


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_told_what_is_done(place, tmp_path, monkeypatch):
    dataset, terminal = shapes(place / "shapes", "val"), Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    evaluation = measure(perfect(dataset), dataset)
    evaluation.results.write(tmp_path / "detections.json")
    told = [line.strip() for line in terminal.getvalue().split("\r")]
    assert f"average precision: {IMAGES} images, {len(evaluation.results)} detections" in told
    assert any(line.startswith("write detections.json: ") for line in told)


class OneOfThreads:
    """A process of a world, played by a thread."""

    def __init__(self, rank, size, barrier, told):
        self.rank, self.world_size, self.is_first = rank, size, rank == 0
        self._barrier, self._told = barrier, told

    def all_gather(self, message):
        self._told[self.rank] = message
        self._barrier.wait()
        messages = list(self._told)
        self._barrier.wait()
        return messages

    def all_reduce(self, *values):
        return [sum(column) for column in zip(*self.all_gather(values), strict=True)]


def evaluate_together(size, detect, dataset, batch_size, stopping=lambda rank: False):
    """What each of the processes returns or raises, in order of rank."""
    barrier, told = threading.Barrier(size, timeout=60), [None] * size

    def one(rank):
        world = OneOfThreads(rank, size, barrier, told)
        try:
            return evaluate(
                begin_by(detect), dataset, 300, batch_size, WorkerPool(0), world=world, stopping=lambda: stopping(rank)
            )
        except (UserError, Interrupted) as error:
            return error

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(one, range(size)))


def by_content(dataset, seen):
    """A detector whose answers depend on the image alone; sums of the images that it has seen are noted."""

    def detect(images, sizes_hw):
        found = []
        for image, (height, width) in zip(images, sizes_hw, strict=True):
            content = int(image.sum())
            seen.append(content)
            rng = np.random.default_rng(content)
            corners = rng.uniform(0, 0.5, (6, 4)).astype(np.float32) + np.array([0, 0, 0.5, 0.5], dtype=np.float32)
            boxes = corners * np.array([width, height, width, height], dtype=np.float32)
            scores = np.sort(rng.random(6).astype(np.float32))[::-1]
            labels = rng.integers(1, dataset.num_classes, 6)
            count = content % 7  # none for some
            found.append({"boxes": boxes[:count], "scores": scores[:count], "labels": labels[:count]})
        return found

    return detect


@pytest.mark.parametrize(("size", "batch_size"), [(2, 1), (3, 1), (2, 2), (3, 4), (3, 100)])
def test_processes_find_together_what_one_finds(data, size, batch_size):
    """With more processes than batches too, and with images that cannot be read."""
    dataset = shapes(data, "val")
    for sample in dataset.samples[1:3]:  # on different processes, before one that can be read
        sample.path.write_bytes(b"")
    alone, together = [], []
    expected = measure(by_content(dataset, alone), dataset, batch_size)
    first, *others = evaluate_together(size, by_content(dataset, together), dataset, batch_size)
    assert sorted(together) == sorted(alone) and len(alone) == IMAGES - 2, "each image once"
    assert others == [None] * (size - 1)
    assert list(first.results) == list(expected.results) and len(first.results) > 0
    assert first.metrics.as_json() == expected.metrics.as_json()
    assert first.unreadable == expected.unreadable and len(first.unreadable) == 2


@pytest.mark.parametrize("stopped", [0, 1])
def test_all_processes_stop_if_one_has_to(place, stopped):
    dataset = shapes(place / "shapes", "val")
    ends = evaluate_together(2, by_content(dataset, []), dataset, 1, stopping=lambda rank: rank == stopped)
    assert [type(end) for end in ends] == [Interrupted, Interrupted]


def test_an_evaluation_stops_after_the_batch_it_is_at(place):
    dataset, seen = shapes(place / "shapes", "val"), []
    with pytest.raises(Interrupted):
        measure(by_content(dataset, seen), dataset, 1, stopping=lambda: len(seen) == 2)
    assert len(seen) == 2


@pytest.fixture(scope="module")
def voc(place):
    """The same images as a VOC data set, without the rings, and the last object of each image difficult."""
    dataset = shapes(place / "shapes", "val")
    names = {category.label: category.name for category in dataset.categories}
    files = {}
    for sample in dataset.samples:
        rows = [row for row in range(len(sample.labels)) if names[sample.labels[row]] != "ring"]
        objects = [
            thing(
                names[sample.labels[row]],
                (sample.boxes[row] + [1, 1, 0, 0]).tolist(),
                f"<difficult>{int(row == rows[-1])}</difficult>",
            )
            for row in rows
        ]
        size = f"<size><width>{sample.width}</width><height>{sample.height}</height></size>"
        files[sample.path.stem] = xml(*objects, size=size)
    folder = write_voc(place / "voc", files, {"val": files}, images=[])
    for sample in dataset.samples:
        shutil.copy(sample.path, folder / "JPEGImages")
    return folder


def test_data_of_voc_gets_vocs_numbers_too(voc):
    """Difficult objects are not found, and cost nothing in either."""
    dataset = load_voc([image_set(voc, "val")])
    counted = sum(int((~sample.difficult).sum()) for sample in dataset.samples)
    assert 0 < counted < sum(len(sample.labels) for sample in dataset.samples)
    samples = [
        replace(sample, boxes=sample.boxes[~sample.difficult], labels=sample.labels[~sample.difficult])
        for sample in dataset.samples
    ]
    evaluation = measure(perfect(replace(dataset, samples=samples)), dataset)
    assert (evaluation.voc.mean_ap, evaluation.voc.mean_ap_07) == (1, 1)
    assert evaluation.metrics.statistics["AP"] == pytest.approx(1)
    assert sum(values[2] for values in evaluation.voc.per_class.values()) == counted
    content = evaluation.as_json()
    assert content["best_f1"]["f1"] == 1 and content["errors"]["AP50"] == 1
    assert content == {**content, **evaluation.metrics.as_json(), "voc": evaluation.voc.as_json()}
    table = evaluation.table().splitlines()
    assert table[-1] == "VOC mAP at IoU 0.5, 11 points (2007): 1.000"
    heading = table.index("class     objects      AP    AP50   VOC AP VOC07 AP")
    objects = evaluation.voc.per_class["circle"][2]
    assert table[heading + 1].split() == ["circle", str(objects), "1.000", "1.000", "1.000", "1.000"]


def test_the_command_evaluates_a_model_with_more_classes_on_voc(place, voc, tmp_path, capsys, monkeypatch):
    arguments = ("--dataset", "voc", "--data-path", voc, "--output-dir", tmp_path, "--verify")
    assert call(place, *arguments) == 0
    output = capsys.readouterr().out
    assert f"on {image_set(voc, 'val')}, {IMAGES} images" in output
    numbers = json.loads((tmp_path / "coco_metrics.json").read_text())
    assert set(numbers["voc"]["per_class"]) == set(numbers["per_class"])
    assert "ring" not in numbers["per_class"] and "circle" in numbers["per_class"]
    assert f"area under the curve (2010 on): {numbers['voc']['mAP']:.3f}" in output
    assert output.splitlines()[-1].startswith("largest difference: ")
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {result["file_name"] for result in results} <= {f"{number:06d}.jpg" for number in range(1, IMAGES + 1)}
    assert 24 not in {result["category_id"] for result in results}, "the id of rings"
    monkeypatch.setattr("ssd300_vgg16.metrics.verification.TOLERANCE", -1)
    assert call(place, *arguments) == 1
    assert "pycocotools computes other numbers" in capsys.readouterr().out.splitlines()[-1]


def test_the_command_prints_and_writes_the_numbers(evaluated, place):
    process, folder = evaluated
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    annotations = "shapes/annotations/instances_val.json"
    assert lines[0] == f"runs/untrained/best.safetensors on {annotations}, {IMAGES} images"
    assert lines[-2:] == [
        "written: runs/untrained/coco_metrics.json, runs/untrained/detections.json",
        "see what is found and missed: open runs/untrained/report.html in a browser",
    ]
    assert re.search(r"^F1 is best, [\d.]+, for detections scored above 0\.\d\d: ", process.stdout, re.MULTILINE)
    assert (folder / "report.html").exists() and (folder / "suspicious_labels.csv").exists()
    numbers = json.loads((folder / "coco_metrics.json").read_text())
    for name, *_ in STATISTICS:
        assert re.search(rf"^{name} .* {numbers[name]:.3f}$", process.stdout, re.MULTILINE)
    for name in ("circle", "square", "triangle", "star", "ring"):
        assert re.search(rf"^{name} +\d+ +{numbers['per_class'][name]['AP']:.3f} ", process.stdout, re.MULTILINE)
    # The numbers are pycocotools' own of what is written.
    annotations = place / "shapes" / "annotations" / "instances_val.json"
    expected = pycocotools_of_files(annotations, folder / "detections.json")
    assert [numbers[name] for name, *_ in STATISTICS] == expected
    results = json.loads((folder / "detections.json").read_text())
    assert all(result.keys() == {"image_id", "category_id", "bbox", "score"} for result in results)
    assert {result["category_id"] for result in results} <= {3, 7, 11, 18, 24}


def test_the_command_leaves_out_what_cannot_be_read_and_tells_it(place, data, tmp_path, capsys):
    (data / "val" / "000002.jpg").write_bytes(b"")
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [1, 2, "three", 4]
    path.write_text(json.dumps(content))
    arguments = ("--data-path", data, "--output-dir", tmp_path / "a" / "b")
    assert call(place, *arguments) == 1
    output = capsys.readouterr().out
    assert "1 x annotation whose bbox is not 4 numbers" in output
    assert "4 images" in output and "000002.jpg: the file is empty" in output
    results = json.loads((tmp_path / "a" / "b" / "detections.json").read_text())
    assert {result["image_id"] for result in results} == {1, 3, 4, 5}
    with pytest.raises(UserError, match="bbox is not 4 numbers"):
        call(place, *arguments, "--strict-data")


def test_where_results_cannot_be_written_is_told_before_the_work(place, data, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out cannot be written \(Not a directory\): name "):
        call(place, "--data-path", data, "--output-dir", tmp_path / "file" / "out")
    monkeypatch.setattr("ssd300_vgg16.folders._MIN_FREE", 1 << 62)  # beside the weights
    with pytest.raises(UserError, match=r"runs/untrained: the disk is full \(.* bytes are free\): make room"):
        call(place, "--data-path", data)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("batch_size", "processes", "expected"), [(8, 1, 8), (32, 1, 32), (256, 1, 32), (32, 4, 8), (5, 2, 3), (256, 4, 32)]
)
def test_a_training_detects_on_a_share_of_its_batch_at_most(batch_size, processes, expected):
    assert evaluation_batch_size(batch_size, World(world_size=processes)) == expected
