"""The two pictures of docs/results-page.md: the page that eval.sh wrote, in a headless Chromium.

bash eval.sh --weights runs/RUN
.venv/bin/python -m benchmarks.results_page runs/RUN/report.html docs
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
# The part of an address that restores a view, and the size of the window.
VIEWS = {"results-page-images": ("", "1280,900"), "results-page-figures": ("tab=figures", "1280,1400")}


def main(page: Path, folder: Path) -> None:
    """Write results-page-images.jpg and results-page-figures.jpg into the folder."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("there is no Chromium here: install it, or take the pictures by hand")
    for name, (view, size) in VIEWS.items():
        with tempfile.TemporaryDirectory() as place:
            picture = Path(place) / "page.png"
            shot = [f"--screenshot={picture}", f"--window-size={size}"]
            # Time enough, by the page's own clock, for pictures to load.
            own = [f"--user-data-dir={place}", "--virtual-time-budget=4000"]
            address = f"{page.absolute().as_uri()}#{view}"
            subprocess.run([browser, *FLAGS, *own, *shot, address], check=True, stderr=subprocess.DEVNULL)
            with Image.open(picture) as taken:
                taken.convert("RGB").save(folder / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
