"""What detecting from Python loads before a photograph is asked about: starting must not cost what is not used."""

import subprocess
import sys
from pathlib import Path

import ssd300_vgg16

ROOT = Path(ssd300_vgg16.__file__).parents[1]
OF_TRAINING = {f"ssd300_vgg16.data.{name}" for name in ("augment", "workers", "loader")}
OF_DOWNLOADS = {"ssd300_vgg16.weights.download", "requests", "pooch"}
OF_NETWORKS = {"oneflow", "numba", "onnx"}


def test_the_detector_loads_what_it_detects_with_alone():
    program = "import ssd300_vgg16.detector, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "onnxruntime" in loaded
    assert not loaded & (OF_TRAINING | OF_DOWNLOADS | OF_NETWORKS)
