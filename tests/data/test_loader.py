"""Batches: what they hold, that they depend on (seed, epoch, sample) alone, and what becomes of images that are bad."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from batches import SIZE, assert_same, batch_config, spoiled
from small_data import shapes, shapes_folder
from yolo_files import sideways, write_yolo

from ssd300_vgg16.data import loader
from ssd300_vgg16.data.augment import augment
from ssd300_vgg16.data.coco import load_coco
from ssd300_vgg16.data.images import DecodedImage, ImageError, network_input, read_image
from ssd300_vgg16.data.loader import (
    backgrounds_of,
    epoch_order,
    evaluation_batches,
    samples_with_objects,
    training_batches,
)
from ssd300_vgg16.data.matching import training_targets
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.data.yolo import load_yolo
from ssd300_vgg16.distributed.world import World
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import default_boxes

SAMPLES, DEFAULT_BOXES = 7, 8732
NOTHING = {
    "boxes": np.empty((0, 4)),
    "labels": np.empty(0, dtype=np.int64),
    "crowd": np.empty(0, dtype=bool),
    "areas": np.empty(0),
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return shapes(shapes_folder(tmp_path_factory.mktemp("loader"), SAMPLES, 1), "train").samples


@pytest.fixture(scope="module")
def pools():
    with WorkerPool(0) as inline, WorkerPool(1) as single, WorkerPool(2) as pair:
        yield inline, single, pair


@pytest.fixture
def inline(pools):
    return pools[0]


def by_file(batches):
    """The three arrays of each file's example."""
    return {
        file: tuple(array[row] for array in (batch.images, batch.offsets, batch.labels))
        for batch in batches
        for row, file in enumerate(batch.files)
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_workers_and_any_order_of_epochs(samples, pools, workers):
    expected = {epoch: list(training_batches(samples, batch_config(), epoch, pools[0])) for epoch in (0, 1)}
    for epoch in (1, 0):
        assert_same(list(training_batches(samples, batch_config(), epoch, pools[workers])), expected[epoch])


def test_an_example_depends_on_seed_epoch_and_sample_alone(samples, inline):
    pairs = by_file(training_batches(samples, batch_config(), 3, inline))
    triples = by_file(training_batches(samples, batch_config(batch_size=3), 3, inline))
    assert pairs.keys() == triples.keys()
    for file, example in pairs.items():
        for array, other in zip(example, triples[file], strict=True):
            np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize(("seed", "epoch"), [(5, 4), (6, 3)])
def test_another_seed_or_epoch_gives_other_examples_in_another_order(samples, inline, seed, epoch):
    batches = list(training_batches(samples, batch_config(), 3, inline))
    others = list(training_batches(samples, batch_config(seed=seed), epoch, inline))
    assert [batch.files for batch in batches] != [batch.files for batch in others]
    examples, other_examples = by_file(batches), by_file(others)
    common = examples.keys() & other_examples.keys()
    assert common
    for file in common:
        assert (examples[file][0] != other_examples[file][0]).any()


def test_an_epoch_can_be_begun_anywhere(samples, pools):
    whole = list(training_batches(samples, batch_config(), 1, pools[0]))
    for start in (0, 1, 2):
        assert_same(list(training_batches(samples, batch_config(), 1, pools[1], start=start)), whole[start:])
    assert list(training_batches(samples, batch_config(), 1, pools[1], start=3)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_shares_of_batches_are_whole_together(samples, pools, workers):
    whole = list(training_batches(samples, batch_config(batch_size=5), 1, pools[0]))
    shares = [
        list(training_batches(samples, batch_config(batch_size=5), 1, pools[workers], share=World(rank, 2).share(5)))
        for rank in range(2)
    ]
    assert [len(batch.images) for share in shares for batch in share] == [3, 2]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [file for part in parts for file in part.files] == batch.files
        for name in ("images", "offsets", "labels"):
            np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(batch, name))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_of_an_evaluation_have_each_batch_once(samples, inline, size):
    shares = [evaluation_batches(samples, 2, SIZE, inline, share=slice(rank, None, size)) for rank in range(size)]
    positions = [batch.positions.tolist() for share in shares for batch in share]
    assert sorted(positions) == [[0, 1], [2, 3], [4, 5], [6]]


@pytest.mark.parametrize(
    ("samples", "batch_size", "steps"), [(10, 2, 5), (10, 3, 3), (4, 4, 1), (1, 1, 1), (3, 8, 1), (1, 4, 1)]
)
def test_an_epoch_takes_each_sample_once_and_a_set_smaller_than_a_batch_is_repeated(samples, batch_size, steps):
    order = epoch_order(samples, batch_size, seed=1, epoch=2)
    assert order.shape == (steps, batch_size)
    times = np.bincount(order.ravel(), minlength=samples)
    assert len(times) == samples
    assert times.min() >= batch_size * steps // samples and times.max() <= -(-batch_size * steps // samples)


def test_backgrounds_are_drawn_anew_for_each_epoch():
    """4 of 9, behind 20 samples that are in every epoch."""
    seen = set()
    for epoch in range(30):
        order = epoch_order(29, 3, seed=1, epoch=epoch, labelled=20, backgrounds=4)
        np.testing.assert_array_equal(order, epoch_order(29, 3, seed=1, epoch=epoch, labelled=20, backgrounds=4))
        assert order.shape == (8, 3) and len(set(order.ravel())) == 24
        assert set(range(20)) < set(order.ravel())
        seen |= {frozenset(order[order >= 20].tolist())}
    assert len(seen) > 20 and set.union(*map(set, seen)) == set(range(20, 29))
    assert (epoch_order(29, 3, 2, 0, 20, 4) != epoch_order(29, 3, 1, 0, 20, 4)).any()


def test_without_backgrounds_an_epoch_is_what_it_was():
    expected = np.random.default_rng([3, 5]).permutation(20)[:18].reshape(6, 3)
    for arguments in ((20, 3, 3, 5), (29, 3, 3, 5, 20, 0)):
        np.testing.assert_array_equal(epoch_order(*arguments), expected)


def test_examples_of_labelled_images_are_the_same_beside_backgrounds(samples, inline):
    empty = [replace(sample, **NOTHING, id=100 + sample.id) for sample in samples]
    alone = by_file(training_batches(samples, batch_config(batch_size=SAMPLES), 3, inline))
    config = batch_config(batch_size=SAMPLES + 2, labelled=SAMPLES, backgrounds=2)
    assert config.images_per_epoch(2 * SAMPLES) == SAMPLES + 2
    (batch,) = training_batches([*samples, *empty], config, 3, inline)
    without = ~batch.labels.any(axis=1)
    assert without.sum() == 2 and batch.images[without].any(axis=(1, 2, 3)).all() and not batch.offsets[without].any()
    for row in np.flatnonzero(~without):
        for array, expected in zip((batch.images, batch.offsets, batch.labels), alone[batch.files[row]], strict=True):
            np.testing.assert_array_equal(array[row], expected)


def test_batches_have_fixed_shapes(samples, inline):
    batches = list(training_batches(samples, batch_config(), 0, inline))
    assert len(batches) == SAMPLES // 2
    for batch in batches:
        assert (batch.images.shape, batch.images.dtype) == ((2, 3, SIZE, SIZE), np.uint8)
        assert (batch.offsets.shape, batch.offsets.dtype) == ((2, DEFAULT_BOXES, 4), np.float32)
        assert (batch.labels.shape, batch.labels.dtype) == ((2, DEFAULT_BOXES), np.int64)
        assert batch.unreadable == []
        assert (batch.labels.max(axis=1) > 0).all()


@pytest.mark.parametrize("policy", ["none", "hflip", "ssd"])
def test_targets_are_those_of_the_augmented_objects(samples, inline, policy):
    seed, epoch = 9, 2
    examples = by_file(training_batches(samples, batch_config(augmentation=policy, seed=seed), epoch, inline))
    for index, sample in enumerate(samples):
        if str(sample.path) not in examples:
            continue
        image = read_image(sample.path)
        objects = sample.objects(*image.shape[:2])
        rng = np.random.default_rng([seed, epoch, index])
        pixels = np.zeros((3, SIZE, SIZE), dtype=np.uint8)
        boxes, labels = augment(DecodedImage(image, image.shape[:2]), *objects, rng, policy, pixels)
        expected = pixels, *training_targets(boxes, labels, default_boxes())
        for array, other in zip(examples[str(sample.path)], expected, strict=True):
            np.testing.assert_array_equal(array, other)


def test_objects_are_taken_in_the_pixels_of_the_file_whatever_size_is_declared(samples, inline):
    config = batch_config(batch_size=1, augmentation="none")
    declared_small = [replace(samples[0], height=10, width=10)]
    assert_same(
        list(training_batches(declared_small, config, 0, inline)),
        list(training_batches(samples[:1], config, 0, inline)),
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated"])
def test_an_unreadable_image_becomes_a_blank_one_and_is_named(samples, tmp_path, pools, kind, workers):
    bad = spoiled(samples[0], tmp_path, kind)
    (batch,) = training_batches([bad, samples[1]], batch_config(), 0, pools[workers])
    row = batch.files.index(str(bad.path))
    assert not batch.images[row].any() and not batch.labels[row].any() and not batch.offsets[row].any()
    assert batch.images[1 - row].any() and batch.labels[1 - row].any()
    assert len(batch.unreadable) == 1 and batch.unreadable[0].startswith(f"{bad.path}: ")


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_stops_at_an_unreadable_image(samples, tmp_path, pools, workers):
    bad = spoiled(samples[0], tmp_path, "truncated")
    with pytest.raises(ImageError, match=r"truncated\.jpg"):
        list(training_batches([bad, samples[1]], batch_config(strict=True), 0, pools[workers]))
    with pytest.raises(ImageError, match=r"truncated\.jpg"):
        list(evaluation_batches([bad, samples[1]], 2, SIZE, pools[workers], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_all_samples_in_order(samples, pools, workers):
    batches = list(evaluation_batches(samples, 3, SIZE, pools[workers]))
    assert [batch.positions.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for batch in batches:
        pixels = [read_image(samples[position].path) for position in batch.positions]
        assert batch.unreadable == []
        assert (batch.positions.dtype, batch.sizes_hw.dtype, batch.images.dtype) == (np.int64, np.int64, np.uint8)
        assert batch.sizes_hw.tolist() == [list(image.shape[:2]) for image in pixels]
        np.testing.assert_array_equal(batch.images, [network_input(image, SIZE) for image in pixels])
    assert list(evaluation_batches([], 4, SIZE, pools[workers])) == []


def test_evaluation_leaves_out_what_cannot_be_read(samples, tmp_path, inline):
    bad = spoiled(samples[0], tmp_path, "text")
    mixed, rest, none = evaluation_batches([bad, samples[1], samples[2], samples[3], bad], 2, SIZE, inline)
    assert (mixed.positions.tolist(), rest.positions.tolist(), none.positions.tolist()) == ([1], [2, 3], [])
    np.testing.assert_array_equal(mixed.images[0], network_input(read_image(samples[1].path), SIZE))
    for batch in (mixed, none):
        assert len(batch.unreadable) == 1 and batch.unreadable[0].startswith(f"{bad.path}: ")
    assert (none.images.shape, none.images.dtype) == ((0, 3, SIZE, SIZE), np.uint8)
    assert (none.sizes_hw.shape, none.sizes_hw.dtype) == ((0, 2), np.int64)


@pytest.mark.parametrize("upright", [True, False])
def test_images_are_turned_for_boxes_that_refer_to_the_upright_image_alone(tmp_path, inline, upright):
    """One file in a YOLO set, with the right half of what a viewer shows as its object, and in a COCO set."""
    folder = write_yolo(tmp_path / "yolo", {"a": "0 0.75 0.5 0.5 1\n"})
    path = folder / "images/train/a.jpg"
    sideways(path)
    if upright:
        (sample,) = load_yolo(folder, "train").samples
        size, red = (100, 50), np.s_[:, SIZE // 2 + 9 :]
        box = [SIZE / 2, 0, SIZE, SIZE]
    else:
        (sample,) = coco_samples(tmp_path, path.parent, {"bbox": [0, 0, 100, 25]})
        size, red = (50, 100), np.s_[: SIZE // 2 - 9]
        box = [0, 0, SIZE, SIZE / 2]
    assert (sample.height, sample.width) == size
    (evaluated,) = evaluation_batches([sample], 1, SIZE, inline)
    (trained,) = training_batches([sample], batch_config(batch_size=1, augmentation="none"), 0, inline)
    assert evaluated.sizes_hw.tolist() == [list(size)]
    for image in (evaluated.images[0], trained.images[0]):
        assert image[0][red].min() > 200 and image[0].mean() == pytest.approx(127, abs=8)
    offsets, labels = training_targets(np.float32([box]), np.array([1]), default_boxes())
    np.testing.assert_array_equal(trained.labels[0], labels)
    np.testing.assert_allclose(trained.offsets[0], offsets, atol=1e-5)


def coco_samples(folder, images, annotation):
    """The samples of a COCO set of one image, a.jpg without a declared size, with one annotation."""
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **annotation}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "coco.json").write_text(json.dumps(document))
    return load_coco(folder / "coco.json", images).samples


def test_the_network_gets_channels_first_rgb_of_its_size():
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[:, :30, 0], image[:, 30:, 2] = 255, 255
    prepared = network_input(image, SIZE)
    assert (prepared.shape, prepared.dtype, prepared.flags["C_CONTIGUOUS"]) == ((3, SIZE, SIZE), np.uint8, True)
    np.testing.assert_array_equal(prepared.transpose(1, 2, 0), cv2.resize(image, (SIZE, SIZE)))
    assert prepared[:, 0, 0].tolist() == [255, 0, 0] and prepared[:, -1, -1].tolist() == [0, 0, 255]


def test_samples_without_an_object_to_train_on_are_left_out(samples):
    empty = replace(samples[0], **NOTHING)
    crowd = replace(samples[1], crowd=np.ones(len(samples[1].labels), dtype=bool))
    flat = replace(samples[2], boxes=samples[2].boxes * np.array([1, 1, 0, 1]))
    assert samples_with_objects([empty, samples[3], crowd, flat]) == [samples[3]]
    lost = replace(empty, incomplete=True)
    assert backgrounds_of([empty, samples[3], crowd, flat, lost]) == [empty], "where something is annotated, it is"
    with pytest.raises(UserError, match="none of the training images has an object"):
        samples_with_objects([empty, crowd, flat])


def test_a_task_holds_only_its_own_samples(samples, monkeypatch):
    """What travels to a worker must not grow with the data set."""
    sizes = []

    class Pool:
        @staticmethod
        def map(function, tasks):
            assert function.func is loader._training_batch
            sizes.extend(len(task.samples) for task in tasks)
            return iter(())

    list(training_batches(samples, batch_config(), 0, Pool()))
    assert sizes == [2, 2, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_within_an_image_is_told_once_and_strict_stops_at_it(samples, tmp_path, workers, capsys):
    damaged = spoiled(samples[0], tmp_path, "damaged")
    few = [damaged, samples[1]]
    with WorkerPool(workers) as pool:
        for epoch in range(2):
            (batch,) = training_batches(few, batch_config(), epoch, pool)
            assert batch.unreadable == [] and batch.images.any(axis=(1, 2, 3)).all()
        list(evaluation_batches(few, 2, SIZE, pool))
        told = capsys.readouterr().out.splitlines()
        assert len(told) == 1 and told[0].startswith(f"{damaged.path}: the JPEG image is damaged")
        with pytest.raises(ImageError, match=r"damaged\.jpg: the JPEG image is damaged"):
            list(training_batches(few, batch_config(strict=True), 0, pool))
