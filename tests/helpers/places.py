"""Where the repository, the reference figures and the data sets are."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "golden"
SHARED = REPOSITORY.parent / "shared"  # not part of the repository: tests that need it are skipped without
BCCD = SHARED / "data" / "bccd"
