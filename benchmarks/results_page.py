"""The pictures of docs/results-page.md and docs/run-page.md: the pages of a run, in a headless Chromium.

bash train.sh --output-dir runs/RUN
bash eval.sh --weights runs/RUN
.venv/bin/python -m benchmarks.results_page runs/RUN docs               # of both pages
.venv/bin/python -m benchmarks.results_page runs/RUN docs run-page      # or of those that are named
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--run-all-compositor-stages-before-draw",
)
# The page, with the part of an address that restores a view, and the size of the window.
VIEWS = {
    "results-page-images": ("report.html", "", "1280,900"),
    "results-page-figures": ("report.html", "tab=figures", "1280,1400"),
    "run-page": ("run.html", "", "1280,1390"),
}


def main(run: Path, folder: Path, names: list[str]) -> None:
    """Write the named pictures, or all of them, into the folder."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("there is no Chromium here: install it, or take the pictures by hand")
    for name in names or VIEWS:
        page, view, size = VIEWS[name]
        with tempfile.TemporaryDirectory() as place:
            picture = Path(place) / "page.png"
            shot = [f"--screenshot={picture}", f"--window-size={size}"]
            # Time enough, by the page's own clock, for pictures to load.
            own = [f"--user-data-dir={place}", "--virtual-time-budget=4000"]
            address = f"{(run / page).absolute().as_uri()}#{view}"
            subprocess.run([browser, *FLAGS, *own, *shot, address], check=True, stderr=subprocess.DEVNULL)
            with Image.open(picture) as taken:
                taken.convert("RGB").save(folder / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
