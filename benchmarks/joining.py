"""What overlapping tiles have found, joined by this package and by SAHI: for the benchmark of tiles."""

from pathlib import Path

from benchmarks.frame import Options, in_fresh_process
from benchmarks.tables import Figures, markdown, paragraphs

SAHI = "sahi"
GRID = 3
THRESHOLDS = (0.01, 0.25)  # of the scores that are joined: those of an evaluation, and of what infer.sh shows
# The measure by which SAHI compares two boxes, each at its default of 0.5, and whether the whole image was seen too.
WAYS = {
    "SAHI, share of the smaller box (its default)": ("IOS", True),
    "SAHI, IoU": ("IOU", True),
    "SAHI without the whole image, share of the smaller box": ("IOS", False),
    "SAHI without the whole image, IoU": ("IOU", False),
}


class Windows:
    """Detections of the windows of large images, before they are joined."""

    def __init__(self) -> None:
        self._kept: list[tuple] = []

    def keeping(self, join):
        """The function that joins them, which keeps what it is given."""

        def kept(found, windows):
            self._kept.append((found, windows))
            return join(found, windows)

        return kept

    def write(self, path: str) -> None:
        """One file of them: an image and a window for each box, in pixels of its window."""
        import numpy as np

        kept = [one for one in self._kept if len(one[1]) == len(self._kept[0][1])]  # those of the first's size
        places = [(image, *window) for image, (_, windows) in enumerate(kept) for window in windows]
        found = [one for of_image, _ in kept for one in of_image]
        columns = {name: np.concatenate([one[name] for one in found]) for name in ("boxes", "scores", "labels")}
        np.savez(path, places=places, counts=[len(one["scores"]) for one in found], **columns)


def _images(path: str, threshold: float) -> list[tuple[list[dict], list[tuple[int, ...]]]]:
    """What `Windows` wrote of each image, scored above the threshold."""
    import numpy as np

    with np.load(path) as kept:
        ends = kept["counts"].cumsum()[:-1]
        split = {name: np.split(kept[name], ends) for name in ("boxes", "scores", "labels")}
        images: list[tuple[list[dict], list]] = [([], []) for _ in range(int(kept["places"][:, 0].max()) + 1)]
        for number, (image, *window) in enumerate(kept["places"].tolist()):
            above = split["scores"][number] > threshold
            images[image][0].append({name: split[name][number][above] for name in split})
            images[image][1].append(tuple(window))
    return images


def compared(path: Path, run: Path, options: Options) -> Figures | None:
    """AP by way and threshold, of the mosaics of nine; None where SAHI is not there."""
    if SAHI not in options.peers:
        return None
    joined = path.with_name(f"{path.stem}-joined.npy")
    in_fresh_process(join_by_sahi, path, joined, python=options.peers.python, package=False)
    return {"version": options.peers.name(SAHI), "AP": in_fresh_process(measured, path, joined, run, options.data)}


def join_by_sahi(path: str, joined: str) -> None:
    """SAHI's detections of each image, by way and threshold, into one file; by a Python that has it."""
    import numpy as np
    from sahi.postprocess.combine import GreedyNMMPostprocess
    from sahi.prediction import ObjectPrediction

    rows = []
    for threshold_number, threshold in enumerate(THRESHOLDS):
        for image, (found, windows) in enumerate(_images(path, threshold)):
            for way, (metric, whole) in enumerate(WAYS.values()):
                predictions = [
                    ObjectPrediction((box + [*window[:2]] * 2).tolist(), int(label), score=float(score))
                    for one, window in list(zip(found, windows, strict=True))[not whole :]
                    for box, score, label in zip(one["boxes"], one["scores"], one["labels"], strict=True)
                ]
                for one in GreedyNMMPostprocess(0.5, metric, class_agnostic=False)(predictions):
                    where = (threshold_number, way, image)
                    rows.append((*where, *one.bbox.to_xyxy(), one.score.value, one.category.id))
    np.save(joined, np.array(rows, dtype=np.float64))


def measured(path: str, joined: str, run: str, data: str) -> dict[str, list[float]]:
    """AP by way, at each threshold."""
    import numpy as np

    from benchmarks.tiles import ap, in_pictures
    from ssd300_vgg16.data.formats import DataSource
    from ssd300_vgg16.detector import Detector
    from ssd300_vgg16.tiles import join

    dataset = DataSource(path=Path(data)).load("val", Detector.load(run, "cpu").description.categories)
    size = dataset.samples[0].height, dataset.samples[0].width
    rows = np.load(joined)

    def of_mosaics(found: list[dict]) -> float:
        return ap(dataset, [one for mosaic in found for one in in_pictures(mosaic, GRID, *size)])["AP"]

    figures: dict[str, list[float]] = {"here": [], **{way: [] for way in WAYS}}
    for threshold_number, threshold in enumerate(THRESHOLDS):
        figures["here"].append(of_mosaics([join(*each) for each in _images(path, threshold)]))
        for number, way in enumerate(WAYS):
            found = []
            for image in range(len(dataset.samples) // GRID**2):
                its = rows[(rows[:, :3] == (threshold_number, number, image)).all(axis=1)]
                its = its[np.argsort(-its[:, 7], kind="stable")].astype(np.float32)
                found.append({"boxes": its[:, 3:7], "scores": its[:, 7], "labels": its[:, 8].astype(np.int64)})
            figures[way].append(of_mosaics(found))
    return figures


def table(figures: Figures | None) -> str:
    """The same as text."""
    if figures is None:
        return ""
    rows = [[way, *(f"{value:.3f}" for value in values)] for way, values in figures["AP"].items()]
    about = (
        f"The same boxes of the photographs' mosaics of nine, joined here and by {figures['version']} (GREEDYNMM); AP:"
    )
    return paragraphs(about, markdown(["", *(f"scores above {threshold}" for threshold in THRESHOLDS)], rows))
