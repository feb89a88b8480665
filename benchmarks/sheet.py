"""One picture of the first twelve in a folder, four in a row, as README.md shows them.

bash infer.sh --weights runs/RUN --output-dir detections
.venv/bin/python -m benchmarks.sheet detections docs/shapes-detections.jpg
"""

import sys
from pathlib import Path

from PIL import Image, ImageOps

CELL, GAP, ACROSS, PICTURES = 300, 6, 4, 12


def main(folder: Path, to: Path) -> None:
    """Write the sheet; each picture is scaled to its cell, whole. The cells have the shape of the first picture."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))[:PICTURES]
    rows = -(-len(paths) // ACROSS)
    with Image.open(paths[0]) as picture:
        height = CELL * picture.height // picture.width
    sheet = Image.new("RGB", (ACROSS * (CELL + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for number, path in enumerate(paths):
        row, column = divmod(number, ACROSS)
        with Image.open(path) as picture:
            cell = ImageOps.pad(picture.convert("RGB"), (CELL, height), color="white")
        sheet.paste(cell, (column * (CELL + GAP), row * (height + GAP)))
    sheet.save(to, quality=85)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
