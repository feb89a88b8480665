"""YOLO data sets of a few small images, as files."""

from PIL import Image

YAML = "train: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n"
WIDTH, HEIGHT = 100, 50
GOOD = "0 0.5 0.5 0.2 0.4\n"  # 40 15 60 35 in pixels


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def write_yolo(folder, labels, yaml=YAML, images="images/train"):
    """data.yaml, and images of 100 x 50 pixels with these labels; None: without a file of them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(yaml)
    for name, text in labels.items():
        image = folder / images / f"{name}.jpg"
        picture(image)
        label = folder / images.replace("images", "labels") / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            label.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def sideways(path):
    """A JPEG stored as 100 x 50 pixels, the upper half red, that EXIF turns by 90 degrees: red is right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (WIDTH, HEIGHT))
    image.paste((255, 0, 0), (0, 0, WIDTH, HEIGHT // 2))
    image.save(path, exif=exif)
