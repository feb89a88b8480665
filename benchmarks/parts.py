"""The parts of the suite, in the order in which they are run and shown."""

from dataclasses import dataclass

# What a part's arguments may hold, for the suite to fill in.
DATA, WEIGHTS = "{data}", "{weights}"


@dataclass(frozen=True)
class Part:
    """A script of this folder that answers with --json.

    arguments: of the full run, and those that every run has (`always`); quick: of a rehearsal, None if it has no part
    in it. minutes: about, on two cores. device, peers: whether it takes --device and --peer-python.
    """

    name: str
    script: str
    minutes: float
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = None
    always: tuple[str, ...] = ()
    device: bool = False
    peers: bool = True

    def command(self, quick: bool, device: str, peer_python: str | None) -> list[str]:
        """The script and its arguments; peer_python: None for the script's own default."""
        command = [f"benchmarks/{self.script}", *self.always, *((self.quick or ()) if quick else self.arguments)]
        if self.device and device != "cpu":
            command += ["--device", device]
        if self.peers and peer_python is not None:
            command += ["--peer-python", peer_python]
        return command


QUICK = ("--rounds", "1", "--quick")
PARTS = (
    Part("network", "network.py", 6, quick=QUICK, device=True),
    Part("cost", "cost.py", 7, quick=QUICK, device=True),
    Part("around_network", "around_network.py", 2, quick=QUICK),
    Part("memory", "memory.py", 2.5, quick=QUICK, device=True),
    Part("coco_ap", "coco_ap.py", 4, quick=("--rounds", "1", "--images", "100")),
    Part(
        "input_pipeline",
        "input_pipeline.py",
        2,
        ("--rounds", "3", "--images", "205"),
        ("--rounds", "1", "--images", "20"),
        always=("--data", DATA),
    ),
    Part(
        "deployment",
        "deployment.py",
        3,
        ("--rounds", "3", "--photographs", "10"),
        always=(WEIGHTS, "--data-path", DATA, "--dataset", "voc"),
        peers=False,
    ),
    Part("scaling", "scaling.py", 3, ("--width", "0.125"), peers=False),
)
