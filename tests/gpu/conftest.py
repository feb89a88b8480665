"""What tests on the GPU stand-in are run with."""

import pytest
from small_data import shapes_folder, untrained_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to run commands in, with generated shapes and the run of an untrained network."""
    folder = tmp_path_factory.mktemp("gpu")
    shapes_folder(folder, 4, 9)
    untrained_run(folder / "untrained", width=0.25)
    return folder
