"""python -m ssd300_vgg16.weights: what it lists, says of a file, writes and refuses."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from file_server import Answer, directly_and_at_once, serving
from foreign_weights import by_published_names, published_trunk, random_detector, reduced_vgg16, write_pth
from safetensors.numpy import load_file, save_file
from small_data import FITTED_SHAPES, environment, untrained_run

from ssd300_vgg16.cli.weights import main
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import fitted_variant
from ssd300_vgg16.weights.formats import Contents
from ssd300_vgg16.weights.locate import BEST
from ssd300_vgg16.weights.published import PUBLISHED, Published, Source
from ssd300_vgg16.weights.recognise import read_as_ssd, recognise
from ssd300_vgg16.weights.safetensors_file import ModelDescription, read_weights, save_weights

NAME = "ssd300_voc_amdegroot"
SHAPES = "circle, square, triangle, star, ring"


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A run's folder with small weights for the shapes."""
    return untrained_run(tmp_path_factory.mktemp("weights") / "run")


@pytest.fixture
def call(capsys):
    """Calls the command line; returns the lines it printed."""

    def printed(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return printed


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        main([str(argument) for argument in arguments])
    return str(caught.value)


def value_of(lines, label):
    """The one line's text behind this label."""
    (line,) = (line for line in lines if line.startswith(f"  {label} "))
    return line.removeprefix(f"  {label} ").strip()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_list_has_every_name_its_meaning_and_its_places(call):
    lines = call("list")
    for name, entry in PUBLISHED.items():
        at = lines.index(f"{name} ({entry.kind})")
        assert lines[at + 1 : at + 2 + len(entry.sources)] == [
            f"    {entry.about}",
            *(f"    {source.url}" for source in entry.sources),
        ]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of an amdegroot file, which is the only source of NAME now; downloads go to tmp_path / "cache"."""
    directly_and_at_once(monkeypatch)
    body = write_pth(tmp_path / "served.pth", random_detector("amdegroot")).read_bytes()
    with serving() as server:
        source = Source(server.url(), len(body), hashlib.sha256(body).hexdigest())
        monkeypatch.setitem(PUBLISHED, NAME, Published(NAME, "detector", "for tests", (source,)))
        monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
        server.answers = [Answer(body)]
        yield server


PROGRAM = """
import sys
from ssd300_vgg16.cli import command_line
from ssd300_vgg16.cli.weights import PUBLISHED_WEIGHTS, main
from ssd300_vgg16.weights.published import Published, Source
PUBLISHED_WEIGHTS["here"] = Published("here", "backbone", "for tests", (Source(sys.argv.pop(1)),))
try:
    command_line.run(main, "weights")
finally:
    print("oneflow" in sys.modules)
"""


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["download", "here"]])
def test_what_builds_no_network_does_not_load_oneflow(server, arguments):
    command = [sys.executable, "-c", PROGRAM, server.url(), *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "Traceback" not in done.stderr
    assert len(server.requests) == ("download" in arguments)


def test_a_download_says_where_the_file_is_and_is_made_once(server, tmp_path, call):
    cached = tmp_path / "cache" / "weights.pth"
    for _ in range(2):
        assert call("download", NAME) == [str(cached)]
    assert cached.read_bytes() == (tmp_path / "served.pth").read_bytes()
    assert len(server.requests) == 1
    lines = call("inspect", NAME)
    assert lines[0] == str(cached)
    assert value_of(lines, "names") == "amdegroot's"


def test_inspection_of_our_own_run(ours, call):
    lines = call("inspect", ours)
    assert lines[0] == str(ours / BEST)
    assert value_of(lines, "format") == "safetensors"
    assert value_of(lines, "names") == "torchvision's"
    assert value_of(lines, "network") == "ssd300_vgg16, default boxes of COCO's sizes, width 0.02"
    assert value_of(lines, "classes") == f"6 outputs: background, {SHAPES}"
    tensors = load_file(ours / BEST)
    parameters = f"{sum(array.size for array in tensors.values()):,}"
    expected = f"{len(tensors)} of an SSD-VGG16, {parameters} parameters; all there, none too much"
    assert value_of(lines, "tensors") == expected
    rows = dict(line.split(maxsplit=1) for line in lines[-len(tensors) :])
    assert rows.keys() == tensors.keys()
    assert rows["backbone.features.0.weight"] == "float32  1 x 3 x 3 x 3"
    assert not any(line.startswith("  not used") for line in lines)


def test_inspection_of_another_projects_detector(tmp_path, call):
    theirs = random_detector("amdegroot") | {f"more.{number}": np.zeros(1, np.float32) for number in range(25)}
    lines = call("inspect", write_pth(tmp_path / "w.pth", theirs))
    assert value_of(lines, "format") == "PyTorch zip"
    assert value_of(lines, "names") == "amdegroot's"
    assert (
        value_of(lines, "network")
        == "ssd300_vgg16, default boxes of VOC's sizes, width 0.0625, learnt in images of 500 pixels"
    )
    assert value_of(lines, "classes").startswith("21 outputs: background, aeroplane, bicycle, ")
    assert value_of(lines, "tensors").endswith("; all there, none too much")
    unused = value_of(lines, "not used")
    assert unused.startswith("more.0, more.1, ") and unused.endswith("more.19, and 5 more")
    assert "21 outputs by amdegroot's names: class names taken to be VOC's" in value_of(lines, "note")


def test_inspection_of_a_trunk_alone(tmp_path, call):
    lines = call("inspect", write_pth(tmp_path / "w.pth", reduced_vgg16()))
    assert value_of(lines, "names") == "vgg16_reducedfc's"
    assert value_of(lines, "network").startswith("VGG16 without SSD's heads: for --weights-backbone")
    assert value_of(lines, "tensors").startswith("30 of an SSD-VGG16, ")
    assert not any(line.startswith("  classes") for line in lines)


@pytest.mark.parametrize(
    ("name", "array", "problem"),
    [
        ("extras.3.bias", None, "missing: backbone.extra.2.2.bias"),
        ("loc.2.weight", np.zeros((24, 32, 1, 1), np.float32), "of another shape: head.regression_head.module_list.2"),
        ("conf.6.bias", np.zeros(84, np.float32), "ssd512_vgg16"),
    ],
)
def test_a_network_that_is_not_whole_is_said_not_to_fit(tmp_path, call, name, array, problem):
    theirs = random_detector("amdegroot")
    theirs = {**theirs, name: array} if array is not None else {key: theirs[key] for key in theirs if key != name}
    path = write_pth(tmp_path / "w.pth", theirs)
    lines = call("inspect", path)
    assert "DOES NOT FIT the network: " in value_of(lines, "tensors")
    assert problem in "\n".join(lines)
    message = refusal("convert", path, tmp_path / "out.safetensors")
    assert str(path) in message and "does not fit this network" in message
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(UserError, match="does not fit this network"):
        Detector.load(path)


OTHER_NETWORK = {"layer1.0.conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}


@pytest.mark.parametrize("verb", ["inspect", "convert"])
@pytest.mark.parametrize("tensors", [OTHER_NETWORK, None], ids=["another network", "cut short"])
def test_a_file_that_is_of_no_use_is_named_in_one_line(tmp_path, verb, tensors):
    path = write_pth(tmp_path / "w.pth", tensors or reduced_vgg16())
    if tensors is None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refusal(verb, path, *([tmp_path / "out.safetensors"] if verb == "convert" else []))
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_what_is_not_there_is_named(tmp_path):
    assert refusal("inspect", tmp_path / "none.pth") == f"{tmp_path / 'none.pth'}: no such file of weights"
    assert "holds neither best.safetensors nor last.safetensors" in refusal("inspect", tmp_path)


def test_a_network_much_larger_than_its_file_is_refused():
    """A bias of 400 kB would be that of heads of 800 MB."""
    tensors = random_detector("amdegroot") | {"conf.5.bias": np.zeros(100_000, np.float32)}
    with pytest.raises(UserError, match=r"w\.pth: .*25000 outputs, for which [\d,]+ parameters are too few"):
        recognise(Contents("PyTorch zip", tensors, []), Path("w.pth"))


@pytest.mark.parametrize("names", ["torchvision", "amdegroot", "lufficc"])
def test_by_other_names_and_back_it_is_the_same(ours, tmp_path, call, names):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    lines = call("convert", ours, there, "--names", names)
    original = load_file(ours / BEST)
    assert lines[-1] == f"written: {there}, {len(original)} tensors by {names}'s names"
    assert read_as_ssd(there).names == names
    call("convert", there, back)
    assert_same(load_file(back), original)
    assert read_weights(back)[1] == {"model": read_weights(ours / BEST)[1]["model"]}


@pytest.mark.parametrize("project", ["amdegroot", "lufficc"])
@pytest.mark.parametrize("size", [300, 512])
def test_the_names_written_are_those_of_the_projects(tmp_path, call, project, size):
    theirs = random_detector(project, size)
    source = write_pth(tmp_path / "w.pth", theirs)
    call("convert", source, tmp_path / "ours.safetensors")
    assert_same(load_file(tmp_path / "ours.safetensors"), by_published_names(theirs, size))
    call("convert", tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors", "--names", project)
    assert_same(load_file(tmp_path / "theirs.safetensors"), theirs)


@pytest.mark.parametrize("names", ["torchvision", "amdegroot"])
@pytest.mark.parametrize("origin", ["ours", "theirs"])
def test_converted_weights_detect_the_same_things_by_the_same_names(ours, tmp_path, call, origin, names):
    source = ours if origin == "ours" else write_pth(tmp_path / "w.pth", random_detector("amdegroot"))
    call("convert", source, tmp_path / "w.safetensors", "--names", names)
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    found, expected = (Detector.load(path, "cpu")(image) for path in (tmp_path / "w.safetensors", source))
    assert len(expected["boxes"]) > 0 and found["names"] == expected["names"]
    assert origin == "theirs" or set(found["names"]) <= set(SHAPES.split(", "))
    for column in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(found[column], expected[column])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("out.pth", "has to end so"),
        ("out", "has to end so"),
        ("out.SAFETENSORS", "has to end so"),
        ("there.safetensors", "there is such a file already; remove it, or name another"),
        ("new/out.safetensors", "there is no such folder to write to"),
    ],
)
def test_only_new_safetensors_are_written_into_a_folder_that_is_there(ours, tmp_path, name, problem):
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    assert problem in refusal("convert", ours, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["there.safetensors"]
    assert (tmp_path / "there.safetensors").read_bytes() == b"precious"


def description_of(path):
    return read_as_ssd(path).description


def test_classes_can_be_named(tmp_path, call):
    source = write_pth(tmp_path / "w.pth", random_detector("amdegroot", num_classes=4))
    assert [category.name for category in description_of(source).categories] == ["class 1", "class 2", "class 3"]
    lines = call("convert", source, tmp_path / "w.safetensors", "--classes", "RBC", "white cell", "Platelets")
    assert value_of(lines, "classes") == "4 outputs: background, RBC, white cell, Platelets"
    assert description_of(tmp_path / "w.safetensors").categories == (
        Category(1, 1, "RBC"),
        Category(2, 2, "white cell"),
        Category(3, 3, "Platelets"),
    )


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        (["a", "b"], "2 names, and 3 outputs"),
        (["a", "b", "c", "d"], "4 names, and 3 outputs"),
        (["a", "b", "A "], "'A ' is given twice"),
    ],
)
def test_classes_that_cannot_be_are_refused(tmp_path, classes, problem):
    source = write_pth(tmp_path / "w.pth", random_detector("amdegroot", num_classes=4))
    message = refusal("convert", source, tmp_path / "out.safetensors", "--classes", *classes)
    assert message.startswith("--classes") and problem in message
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("size", "said", "variant"),
    [
        (300, [], "ssd300_vgg16_coco"),
        (300, ["--default-boxes", "voc"], "ssd300_vgg16_voc"),
        (512, [], "ssd512_vgg16_coco"),
        (512, ["--model", "ssd512_vgg16_highres"], "ssd512_vgg16_highres_coco"),
        (512, ["--model", "ssd512_vgg16", "--default-boxes", "voc"], "ssd512_vgg16_voc"),
    ],
)
def test_what_a_file_does_not_say_of_its_network_can_be_said(tmp_path, call, size, said, variant):
    source = write_pth(tmp_path / "w.pth", random_detector("amdegroot", size, 4))
    out = tmp_path / "out.safetensors"
    lines = call("convert", source, out, *said)
    assert description_of(out).variant.name == variant
    model, _, boxes = variant.rpartition("_")
    assert f"  network  {model}, default boxes of {boxes.upper()}'s sizes, width 0.0625" in lines
    assert Detector.load(out).model.variant.name == variant


def test_fitted_default_boxes_stay_unless_others_are_said(ours, tmp_path, call):
    fitted, out = tmp_path / "fitted.safetensors", tmp_path / "out.safetensors"
    description = replace(description_of(ours / BEST), variant=fitted_variant("ssd300_vgg16", FITTED_SHAPES))
    save_weights(fitted, read_weights(ours / BEST)[0], description)
    lines = call("convert", fitted, out)
    assert "  network  ssd300_vgg16, default boxes fitted to a data set, width 0.02" in lines
    assert description_of(out) == description
    call("convert", fitted, tmp_path / "voc.safetensors", "--default-boxes", "voc")
    assert description_of(tmp_path / "voc.safetensors").variant.name == "ssd300_vgg16_voc"
    message = refusal("convert", fitted, tmp_path / "other.safetensors", "--model", "ssd512_vgg16")
    assert "has default boxes of its own, fitted for ssd300_vgg16" in message


def test_a_model_that_the_tensors_are_not_of_is_refused(ours, tmp_path):
    message = refusal("convert", ours, tmp_path / "out.safetensors", "--model", "ssd512_vgg16")
    assert "does not fit this network (ssd512_vgg16_coco, width 0.02)" in message
    assert "missing: head.classification_head.module_list.6.weight" in message
    assert list(tmp_path.iterdir()) == []


def test_a_first_layer_for_bgr_is_turned(tmp_path, call):
    theirs = reduced_vgg16()
    write_pth(tmp_path / "caffe.pth", theirs)
    call("convert", tmp_path / "caffe.pth", tmp_path / "out.safetensors", "--bgr")
    found = load_file(tmp_path / "out.safetensors")["backbone.features.0.weight"]
    np.testing.assert_array_equal(found, theirs["0.weight"][:, ::-1])
    assert not np.array_equal(found, theirs["0.weight"])


@pytest.mark.parametrize("names", ["torchvision", "amdegroot", "lufficc"])
def test_a_trunk_alone_can_be_converted(tmp_path, call, names):
    source, out = write_pth(tmp_path / "w.pth", reduced_vgg16()), tmp_path / "out.safetensors"
    call("convert", source, out, "--names", names)
    found = read_as_ssd(out)
    assert (found.description, found.names) == (None, names)
    assert_same(found.tensors, published_trunk())
    with pytest.raises(UserError, match=r"out\.safetensors holds a VGG16 without SSD's heads"):
        Detector.load(out)
    for said in (["--classes", "cat"], ["--model", "ssd300_vgg16"], ["--default-boxes", "voc"]):
        assert refusal("convert", source, tmp_path / "more.safetensors", *said).startswith(f"{source} has no heads")
    assert not (tmp_path / "more.safetensors").exists()


def test_categories_with_gaps_keep_their_ids(tmp_path, call):
    categories = (Category(1, 7, "cell"), Category(3, 12, "Zelle größer"))
    tensors = by_published_names(random_detector("amdegroot", num_classes=4))
    save_weights(tmp_path / "w.safetensors", tensors, ModelDescription(4, 1 / 16, categories))
    call("convert", tmp_path / "w.safetensors", tmp_path / "out.safetensors", "--names", "lufficc")
    assert description_of(tmp_path / "out.safetensors").categories == categories


def test_numbers_of_half_precision_and_views_are_converted_as_they_are(tmp_path, call):
    tensors = by_published_names(random_detector("amdegroot"))
    half = {name: array.astype(np.float16) for name, array in tensors.items()}
    save_file(half, tmp_path / "half.safetensors")
    call("convert", tmp_path / "half.safetensors", tmp_path / "out.safetensors")
    assert_same(load_file(tmp_path / "out.safetensors"), half)
    turned = {name: np.asfortranarray(array) for name, array in tensors.items()}
    call("convert", write_pth(tmp_path / "views.pth", turned), tmp_path / "views.safetensors")
    assert_same(load_file(tmp_path / "views.safetensors"), tensors)
