import numpy as np
import pytest

from ssd300_vgg16 import draw
from ssd300_vgg16.draw import draw_detections, label_colour

BACKGROUND = 70


def blank(height=200, width=300):
    return np.full((height, width, 3), BACKGROUND, dtype=np.uint8)


def drawn(*boxes, scores=None, names=None, labels=None, image=None):
    labels = list(range(1, len(boxes) + 1)) if labels is None else labels
    names = ["dog"] * len(boxes) if names is None else names
    return draw_detections(blank() if image is None else image, np.array(boxes), scores, names, labels)


def pixels_of(picture, label):
    """Rows and columns that have the colour of a label exactly."""
    return np.nonzero((picture == label_colour(label)).all(axis=-1))


@pytest.fixture
def tags(monkeypatch):
    """Place and text of every tag that is drawn, in that order."""
    placed, draw_tag = [], draw._draw_tag

    def recording(canvas, place, text, *rest):
        placed.append((place.tolist(), text))
        draw_tag(canvas, place, text, *rest)

    monkeypatch.setattr(draw, "_draw_tag", recording)
    return placed


def test_box_is_drawn_where_it_is():
    picture = drawn([100, 60, 220, 160], scores=[0.87])
    rows, columns = pixels_of(picture, 1)
    assert (columns.min(), columns.max(), rows.max()) == (100, 219, 159)
    assert all((picture[60:160, column] == label_colour(1)).all() for column in (100, 219))
    assert (picture[70:150, 110:210] == BACKGROUND).all()
    changed = np.nonzero((picture != BACKGROUND).any(axis=-1))
    assert changed[0].min() > 40 and changed[0].max() == 160
    assert changed[1].min() == 99 and changed[1].max() == 220


def test_tag_stands_on_the_box_and_can_be_read(tags):
    picture = drawn([100, 60, 220, 160], scores=[0.87])
    ((x1, y1, x2, y2), text) = tags[0]
    assert text == "dog 87%" and (x1, y2) == (100, 60)
    tag = picture[y1:y2, x1:x2].reshape(-1, 3)
    filled = (tag == label_colour(1)).all(axis=-1).mean()
    written = (np.abs(tag - np.array(draw._text_colour(label_colour(1)))).max(axis=-1) < 60).mean()
    assert 0.5 < filled < 0.95 and written > 0.05


def test_names_and_scores_reach_the_tags_and_ground_truth_has_names_alone(tags):
    boxes = [10, 50, 60, 90], [100, 50, 160, 90], [200, 50, 260, 90]
    for scores in ([0.5, 0.004, 0.999], None):
        drawn(*boxes, scores=scores, names=["a", "b", "c"])
    assert [text for _, text in tags] == ["b 0%", "a 50%", "c 100%", "b", "c", "a"]


@pytest.mark.parametrize("shape", [(200, 300), (40, 60), (900, 1600)])
@pytest.mark.parametrize(
    "box", [(-0.2, 0.3, 0.2, 0.6), (0.3, -0.2, 0.6, 0.2), (0.9, 0.3, 1.3, 0.6), (0.3, 0.9, 0.6, 1.3), (-1, -1, 2, 2)]
)
def test_tag_stays_inside_at_every_border(tags, box, shape):
    height, width = shape
    drawn(np.array(box) * [width, height, width, height], scores=[0.5], image=blank(height, width))
    ((x1, y1, x2, y2), _) = tags[0]
    assert x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height
    assert x2 - x1 > 20 and y2 - y1 >= draw.MIN_LEGIBLE_FONT


@pytest.mark.parametrize("count", [1, 20, 700])
def test_most_of_a_large_image_is_seen_between_its_tags(tags, count):
    """And of one with few boxes the tags are large enough to be read when it is shown reduced."""
    corners = np.random.default_rng(0).uniform(0, (3900, 2900), (count, 2))
    drawn(*np.concatenate((corners, corners + 100), axis=1), scores=[0.5] * count, image=blank(3000, 4000))
    sizes = np.array([(x2 - x1, y2 - y1) for (x1, y1, x2, y2), _ in tags])
    assert sizes.prod(axis=1).sum() < 0.2 * 3000 * 4000
    assert sizes[:, 1].min() > (80 if count < 30 else 15)


def test_box_beyond_the_border_is_closed_at_it():
    rows, columns = pixels_of(drawn([-50, 150, 400, 400]), 1)
    assert (columns.min(), columns.max(), rows.max()) == (0, 299, 199)
    assert (rows == 199).sum() == 300


@pytest.mark.parametrize("box", [[400, 10, 500, 60], [-50, 10, 0, 60], [50, 40, 50, 90], [np.nan, 0, 50, 90]])
def test_box_without_visible_area_is_left_out(box):
    np.testing.assert_array_equal(drawn(box, scores=[0.9]), blank())


def test_nothing_found():
    image = blank()
    picture = draw_detections(image, np.zeros((0, 4), np.float32), np.zeros(0), [], np.zeros(0, np.int64))
    np.testing.assert_array_equal(picture, image)
    assert not np.shares_memory(picture, image)


@pytest.mark.parametrize(("scores", "on_top"), [([0.9, 0.4], 1), ([0.4, 0.9], 2), (None, 1)])
def test_the_best_score_lies_on_top_and_of_ground_truth_the_smallest_box(scores, on_top):
    """Two boxes with the same left side: one's colour is seen there."""
    picture = drawn([100, 60, 180, 160], [100, 60, 220, 160], scores=scores)
    np.testing.assert_array_equal(picture[120, 100], label_colour(on_top))


def test_tags_avoid_each_other_and_the_best_has_the_first_choice(tags):
    drawn([100, 60, 220, 160], [104, 62, 224, 164], [96, 58, 216, 158], scores=[0.4, 0.9, 0.6])
    assert tags[-1][1] == "dog 90%" and tags[-1][0][0] == 104 and tags[-1][0][3] == 62
    places = [place for place, _ in tags]
    for i, a in enumerate(places):
        for b in places[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_input_is_unchanged_and_output_repeatable():
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    image.flags.writeable = False
    boxes = np.array([[10.4, 20.6, 80, 90], [-5, -5, 200, 60]], dtype=np.float32)
    boxes.flags.writeable = False
    first, second = (draw_detections(image, boxes, np.array([0.3, 0.8]), ["a", "b"], [1, 2]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.uint8 and first.shape == image.shape and first.flags.writeable
    assert (first != image).any()


def test_colours_are_stable_and_differ():
    colours = np.array([label_colour(label) for label in range(1, 91)])
    assert len(np.unique(colours, axis=0)) == 90
    assert label_colour(7) == label_colour(7)
    apart = np.abs(colours[:20, None] - colours[None, :20]).sum(axis=-1) + 1000 * np.eye(20)
    assert apart.min() > 60


@pytest.mark.parametrize(("background", "text"), [((255, 255, 0), 0), ((0, 0, 160), 255), ((0, 0, 0), 255)])
def test_text_contrasts_with_its_tag(background, text):
    assert draw._text_colour(background) == (text,) * 3


def test_names_beyond_ascii_are_drawn_as_such():
    pictures = [drawn([100, 60, 220, 160], names=[name]) for name in ("жук", "дом", "köp", "kop", "σκύ")]
    for i, picture in enumerate(pictures):
        assert all((picture != other).any() for other in pictures[:i])


def test_size_of_line_and_text_follows_the_picture(tags):
    heights, lines = [], []
    for scale in (1, 4):
        picture = drawn(np.array([100, 60, 220, 160]) * scale, image=blank(200 * scale, 300 * scale))
        heights.append(tags[-1][0][3] - tags[-1][0][1])
        column = (picture[130 * scale, : 160 * scale] == label_colour(1)).all(axis=-1)
        lines.append(column.sum())
    assert lines == [1, 4] and heights[1] > 1.8 * heights[0]


def test_tiny_picture_has_boxes_without_tags(tags):
    picture = drawn([2, 3, 15, 18], scores=[0.5], image=blank(20, 20))
    assert not tags
    rows, columns = pixels_of(picture, 1)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (2, 3, 14, 17)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (12, 2000)])
def test_odd_pictures(shape):
    height, width = shape
    picture = drawn([0, 0, width, height], [0, 0, 0.3, 0.3], scores=[0.5, 0.6], image=blank(height, width))
    assert picture.shape == (height, width, 3) and (picture != BACKGROUND).any()


def test_long_name_shrinks_to_fit(tags):
    drawn([100, 60, 220, 160], names=["an object with quite a long name, say so"])
    assert tags[0][0][0] >= 0 and tags[0][0][2] <= 300
