"""One small data set, of eight images with a cat and a dog each, in the layouts that tools export."""

import json
from pathlib import Path

from PIL import Image
from voc_files import thing, xml

NAMES = tuple(f"{number}.jpg" for number in range(8))
TRAIN, VAL = NAMES[:6], NAMES[6:]
WIDTH, HEIGHT = 60, 40
YOLO_LABELS = "0 0.333333 0.375 0.333333 0.25\n1 0.5 0.75 0.333333 0.25\n"
CAT, DOG = (11, 11, 30, 20), (21, 26, 40, 35)  # as VOC counts them


def images(folder: Path, names=NAMES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT), (9, int(name[0]), 0)).save(folder / name)


def texts(folder: Path, contents: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text)


def coco(file: Path, names=NAMES, prefix="", root=False) -> None:
    """An annotation file; root: with the category 0 that Roboflow puts above the others."""
    file.parent.mkdir(parents=True, exist_ok=True)
    above = [{"id": 0, "name": "animals", "supercategory": "none"}] if root else []
    rows = [(index, label) for index in range(len(names)) for label in (1, 2)]
    boxes = {1: [10, 10, 20, 10], 2: [20, 25, 20, 10]}
    document = {
        "images": [
            {"id": index, "file_name": prefix + name, "width": WIDTH, "height": HEIGHT}
            for index, name in enumerate(names)
        ],
        "annotations": [
            {"id": number, "image_id": index, "category_id": label, "bbox": boxes[label], "area": 200, "iscrowd": 0}
            for number, (index, label) in enumerate(rows)
        ],
        "categories": [
            *above,
            {"id": 1, "name": "cat", "supercategory": "animals"},
            {"id": 2, "name": "dog", "supercategory": "animals"},
        ],
    }
    file.write_text(json.dumps(document))


def voc(folder: Path, names=NAMES, suffix=".xml") -> None:
    texts(
        folder, {Path(name).stem + suffix: xml(thing("cat", CAT), thing("dog", DOG), file_name=name) for name in names}
    )


def yolo_labels(folder: Path, names=NAMES) -> None:
    texts(folder, {f"{Path(name).stem}.txt": YOLO_LABELS for name in names})


def roboflow_coco(data: Path) -> None:
    for split, names in (("train", TRAIN), ("valid", VAL)):
        images(data / split, names)
        coco(data / split / "_annotations.coco.json", names, root=True)


def single_json(data: Path) -> None:
    images(data / "pictures")
    coco(data / "labels.json")


def paired_json_beside(data: Path) -> None:
    images(data)
    coco(data.parent / "animals_train.json", TRAIN)
    coco(data.parent / "animals_val.json", VAL)


def cvat_coco(data: Path) -> None:
    images(data / "images" / "default")
    coco(data / "annotations" / "instances_default.json")


def label_studio_coco(data: Path) -> None:
    images(data / "images")
    coco(data / "result.json", prefix="/data/upload/3/1a2b3c4d-")


def voc_two_folders(data: Path) -> None:
    images(data / "images")
    voc(data / "annotations")
    texts(data, {"environment.yml": "name: cats\ndependencies: [python=3.10]\n"})


def voc_annots(data: Path) -> None:
    images(data / "images")
    voc(data / "annots", suffix=".XML")
    texts(data / "detections", {"data.yaml": "# Of infer.sh --save-txt.\nnames:\n  0: cat\n"})


def cvat_voc(data: Path) -> None:
    images(data / "JPEGImages")
    voc(data / "Annotations")
    texts(data / "ImageSets" / "Main", {"default.txt": "\n".join(Path(name).stem for name in NAMES)})


def ultralytics(data: Path, path: str = "animals") -> None:
    for split, names in (("train", TRAIN), ("val", VAL)):
        images(data / "images" / split, names)
        yolo_labels(data / "labels" / split, names)
    yaml = f"path: {path}\ntrain: images/train\nval: images/val\nnames: {{0: cat, 1: dog}}\n"
    texts(data, {"animals.yaml": yaml})


def ultralytics_absolute(data: Path) -> None:
    ultralytics(data, "/content/datasets/animals")


def darknet(data: Path) -> None:
    images(data / "obj_train_data")
    yolo_labels(data / "obj_train_data")
    texts(
        data,
        {
            "obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
            "obj.names": "cat\ndog\n",
            "train.txt": "".join(f"data/obj_train_data/{name}\n" for name in NAMES),
        },
    )


def roboflow_darknet(data: Path) -> None:
    for split, names in (("train", TRAIN), ("valid", VAL)):
        images(data / split, names)
        yolo_labels(data / split, names)
        texts(data / split, {"_darknet.labels": "cat\ndog\n"})
    images(data, ["0.png"])  # the picture of a README


def coco_trainval(data: Path) -> None:
    images(data / "images")
    parts = {"train": TRAIN, "val": VAL, "trainval": NAMES, "test": NAMES[:2]}
    for name, files in parts.items():
        coco(data / "annotations" / f"{name}.json", files)
    coco(data / "annotations" / "default.json", ["99.jpg"])  # of images that are not there


def cvat_voc_subsets(data: Path) -> None:
    cvat_voc(data)
    for name, files in (("Train", TRAIN), ("Validation", VAL)):
        texts(data / "ImageSets" / "Main", {f"{name}.txt": "\n".join(Path(file).stem for file in files)})


def roboflow_voc(data: Path) -> None:
    for split, names in (("train", TRAIN), ("valid", VAL), ("test", NAMES[:2])):
        images(data / split, names)
        voc(data / split, names)


def roboflow_yolo_two_folders_down(data: Path) -> None:
    folder = data / "datasets" / "animals-1"
    for split, names in (("train", TRAIN), ("valid", VAL)):
        images(folder / split / "images", names)
        yolo_labels(folder / split / "labels", names)
    paths = "train: D:/git/animals/train/images\nval: D:\\git\\animals\\valid\\images\ntest: ../test/images\n"
    texts(folder, {"data.yaml": f"{paths}nc: 2\nnames: ['cat', 'dog']\n", "README.roboflow.txt": ""})
    texts(folder / "runs" / "detect" / "train", {"args.yaml": "task: detect\ndata: data.yaml\n"})


def label_studio_yolo(data: Path) -> None:
    images(data / "images")
    yolo_labels(data / "labels")
    notes = {"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "info": {"version": "1.0"}}
    texts(data, {"classes.txt": "cat\ndog\n", "notes.json": json.dumps(notes)})


def labelimg_yolo(data: Path) -> None:
    images(data / "images")
    yolo_labels(data / "images")
    texts(data / "images", {"classes.txt": "cat\ndog\n"})


def yolo_in_voc_folders(data: Path) -> None:
    images(data / "JPEGImages")
    yolo_labels(data / "labels")
    texts(data / "labels", {"animals.names": "cat\ndog\n"})


# By name: what writes it, the format, and whether it is divided into training and validation.
LAYOUTS = {
    "Roboflow COCO": (roboflow_coco, "coco", True),
    "single JSON": (single_json, "coco", False),
    "paired JSON beside": (paired_json_beside, "coco", True),
    "CVAT COCO": (cvat_coco, "coco", False),
    "Label Studio COCO": (label_studio_coco, "coco", False),
    "VOC annotations and images": (voc_two_folders, "voc", False),
    "VOC annots and images": (voc_annots, "voc", False),
    "CVAT VOC": (cvat_voc, "voc", False),
    "Ultralytics": (ultralytics, "yolo", True),
    "Ultralytics, absolute path": (ultralytics_absolute, "yolo", True),
    "darknet": (darknet, "yolo", False),
    "Roboflow darknet": (roboflow_darknet, "yolo", True),
    "COCO with trainval": (coco_trainval, "coco", True),
    "CVAT VOC, subsets": (cvat_voc_subsets, "voc", True),
    "Roboflow VOC": (roboflow_voc, "voc", True),
    "Roboflow YOLO, two folders down": (roboflow_yolo_two_folders_down, "yolo", True),
    "Label Studio YOLO": (label_studio_yolo, "yolo", False),
    "LabelImg YOLO": (labelimg_yolo, "yolo", False),
    "YOLO in VOC's folders": (yolo_in_voc_folders, "yolo", False),
}
