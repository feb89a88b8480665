"""The parts of the suite, in the order in which they are run and shown."""

from dataclasses import dataclass

# For the suite to fill in: a data set in VOC's layout, its images, one of these.
PHOTOGRAPHS, IMAGES, PHOTOGRAPH = "{photographs}", "{images}", "{photograph}"


@dataclass(frozen=True)
class Part:
    """A script of this folder that answers with --json.

    always: arguments of every run; full, quick: those of the full run and of a rehearsal, None if it has no part in it.
    minutes: about, on two cores. peer_option: how the peers' Python is given to it; needs: what it takes from there.
    device, weights: whether it takes --device and --weights.
    """

    name: str
    script: str
    minutes: float
    always: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = None
    peer_option: str = ""
    needs: tuple[str, ...] = ()
    device: bool = False
    weights: bool = False


QUICK = ("--rounds", "1", "--quick")
PEER_PYTHON = "--peer-python"
TORCHVISION = ("torchvision",)
PARTS = (
    Part("network", "network.py", 6, quick=QUICK, peer_option=PEER_PYTHON, needs=TORCHVISION, device=True),
    Part("cost", "cost.py", 7, quick=QUICK, peer_option=PEER_PYTHON, needs=TORCHVISION, device=True),
    Part(
        "around_network",
        "around_network.py",
        2,
        quick=QUICK,
        peer_option=PEER_PYTHON,
        needs=("pycocotools", "torchvision"),
    ),
    Part("memory", "memory.py", 2.5, quick=QUICK, peer_option=PEER_PYTHON, needs=TORCHVISION, device=True),
    Part(
        "coco_ap",
        "coco_ap.py",
        4,
        quick=("--rounds", "1", "--images", "100"),
        peer_option=PEER_PYTHON,
        needs=("pycocotools", "faster-coco-eval"),
    ),
    Part(
        "input_pipeline",
        "input_pipeline.py",
        2,
        always=("--data", PHOTOGRAPHS),
        full=("--rounds", "3", "--images", "205"),
        quick=("--rounds", "1", "--images", "20"),
        peer_option=PEER_PYTHON,
        needs=TORCHVISION,
    ),
    Part("postprocess", "postprocess.py", 0.5, quick=("--rounds", "1"), peer_option="--peer", needs=TORCHVISION),
    Part(
        "deployment",
        "deployment.py",
        2,
        always=("--data-path", PHOTOGRAPHS, "--dataset", "voc"),
        full=("--rounds", "3", "--photographs", "10", "--calibration", "50"),
        peer_option="--peer",
        needs=TORCHVISION,
        weights=True,
    ),
    Part("folder", "folder.py", 2, always=(IMAGES,), full=("--rounds", "3", "--photographs", "10"), weights=True),
    Part("start", "start.py", 1.5, always=(PHOTOGRAPH,), full=("--rounds", "3"), weights=True),
    Part("scaling", "scaling.py", 2, full=("--width", "0.125", "--rounds", "2")),
)
