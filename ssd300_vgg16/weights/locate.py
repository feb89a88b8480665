"""What a path or name of weights means: a file, a checkpoint in a run's folder, or published weights."""

from difflib import get_close_matches
from pathlib import Path

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights.oneflow_reader import DONE, PICKLE
from ssd300_vgg16.weights.published import PUBLISHED

# The checkpoints of a run's folder.
LAST = "last.safetensors"
BEST = "best.safetensors"
OPTIONS = "options.json"  # what makes a folder that of a run
# Where evaluations of published weights go: not into the folder of downloads, where these are.
EVALUATIONS = Path("evaluations")


def find_weights(path: Path) -> Path:
    """The weights that a path means: itself, the best (else the last) checkpoint of a run's folder, or published ones.

    Published ones, by their name, are downloaded now if need be. Raises UserError if it means none.
    """
    if is_published_name(path):
        # Only here: a file or a run's folder is found without what downloads.
        from ssd300_vgg16.weights.download import fetch

        return fetch(PUBLISHED[str(path)])
    if not path.exists() and (near := get_close_matches(str(path), PUBLISHED, n=1)):
        raise UserError(f"{path}: there is no such file or folder; did you mean the published {near[0]}?")
    if not path.is_dir() or (path / PICKLE).exists() or (path / DONE).exists():
        return path
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path}: this folder holds neither {BEST} nor {LAST}, nor OneFlow's {PICKLE}; "
        "name a run's folder or a file of weights"
    )


def refuse_run(folder: Path) -> None:
    """Raises UserError if results would go over the figures in a run's folder, or to where a link in one leads."""
    for place in (folder, *folder.parents):
        if place.is_symlink() and (place.parent / OPTIONS).exists():
            raise UserError(f"--output-dir {folder}: {place} is a link in a run's folder: name the folder it leads to")
    if (folder / OPTIONS).exists():
        raise UserError(f"--output-dir {folder} holds a run, whose own figures would be lost: name another folder")


def is_published_name(path: Path) -> bool:
    """Whether a path is no file or folder but the name of published weights."""
    return str(path) in PUBLISHED and not path.exists()
