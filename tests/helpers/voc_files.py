"""VOC data sets of a few small images, as files."""

from PIL import Image

SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


def thing(name="cat", box=(11, 11, 30, 20), more="<difficult>0</difficult>"):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    return (
        f"<object><name>{name}</name>{more}"
        f"<bndbox>{''.join(f'<{side}>{value}</{side}>' for side, value in sides)}</bndbox></object>"
    )


def xml(*objects, size=SIZE, file_name="1.jpg"):
    return f"<annotation><filename>{file_name}</filename>{size}{''.join(objects)}</annotation>"


def one_cat_each(*names):
    """XML files by name, each with a cat."""
    return {name: xml(thing(), file_name=f"{name}.jpg") for name in names}


def write_voc(folder, files, sets, images=None):
    """A VOC folder with these XML files by name, image sets by name, and an image for each XML file."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / "Annotations" / f"{name}.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for name in [f"{name}.jpg" for name in files] if images is None else images:
        Image.new("RGB", (60, 40)).save(folder / "JPEGImages" / name)
    for name, lines in sets.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_pairs(folder, files, images=None):
    """A folder of XML files by name; beside each of them, or in the folder of images, an image."""
    images = images or folder
    for place in (folder, images):
        place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.xml").write_text(text)
        Image.new("RGB", (60, 40)).save(images / f"{name}.jpg")
    return folder


def image_set(folder, name):
    return folder / "ImageSets" / "Main" / f"{name}.txt"
