"""The summary of the page: what the parts' figures say in a line each, against the peer it is about."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import part
from engines import FORWARD, ONEFLOW, ONNX_RUNTIME, TRAINING
from network import OUR_ENGINES


@dataclass(frozen=True)
class Claim:
    """A figure of the package and of a peer, of which less is better; unit: "s", "ms" or "MiB"."""

    what: str
    ours: float
    peer: str
    theirs: float
    unit: str

    def cells(self) -> list[str]:
        """What, ours, the peer with its figure, and how many times ours that is."""
        scale = 1e3 if self.unit == "ms" else 1.0
        ours, theirs = (f"{part.significant(value * scale)} {self.unit}" for value in (self.ours, self.theirs))
        return [self.what, ours, f"{theirs}, {self.peer}", part.significant(self.theirs / self.ours)]


def of_network(figures: dict) -> Iterator[Claim]:
    engines = figures["engines"]
    for what in (FORWARD, TRAINING):
        for engine in (ONNX_RUNTIME, ONEFLOW):
            ours = engines.get(OUR_ENGINES[engine], {}).get(what)
            for peer, found in engines.items():
                if ours and peer not in OUR_ENGINES.values() and what in found and "MKL" not in peer:
                    yield Claim(f"{what} of an image, {engine}", ours, peer, found[what], "s")


def at_point(figures: dict, point: object, what: str, unit: str, prefix: str = "") -> Iterator[Claim]:
    """The package against the one peer at a point of an axis, of lines named PREFIX and side."""
    place, lines = figures["points"].index(point), figures["lines"]
    peer = next((name for name in lines if name.startswith(prefix) and "this package" not in name), None)
    for name, values in lines.items():
        if peer and name.startswith(f"{prefix}this package") and values[place] and lines[peer][place]:
            engine = name.removeprefix(f"{prefix}this package")
            yield Claim(what + engine, values[place], peer.removeprefix(prefix), lines[peer][place], unit)


def of_cost(figures: dict) -> Iterator[Claim]:
    points = {"images in a batch": (8, "{}, batch 8, an image"), "input": ("SSD512 highres", "{}, SSD512 highres")}
    points["classes"] = (1204, "{}, 1204 classes")
    for sweep, (point, text) in points.items():
        for what in (FORWARD, TRAINING):
            if point in figures.get(sweep, {}).get("points", ()):
                yield from at_point(figures[sweep], point, text.format(what), "s", f"{what}, ")


# Of each axis the point that is told of, and how.
POINTS_AROUND = {
    "photograph": ("4000x3000", "4000x3000"),
    "objects in an image": (10, "10 objects"),
    "classes": (1204, "1204 classes"),
}


def of_around_network(figures: dict) -> Iterator[Claim]:
    for what, found in figures.items():
        point, text = POINTS_AROUND[found["axis"]]
        yield from at_point(found, point, f"{what}, {text}", "ms")


def of_memory(figures: dict) -> Iterator[Claim]:
    for what, batch in ((TRAINING, "4"), (FORWARD, "1")):
        engines = {name: found[batch] for name, found in figures.get(what, {}).items() if batch in found}
        for engine in (ONNX_RUNTIME, ONEFLOW):
            ours = engines.get(OUR_ENGINES[engine])
            for peer, theirs in engines.items():
                if ours and peer not in OUR_ENGINES.values():
                    yield Claim(f"memory, {what}, batch {batch}, {engine}", ours, peer, theirs, "MiB")


def of_coco_ap(figures: dict) -> Iterator[Claim]:
    ours = figures["the package"]
    for peer, found in figures.items():
        if peer != "the package":
            yield Claim("COCO's numbers", ours["AP, seconds"], peer, found["AP, seconds"], "s")
            yield Claim("their memory", ours["peak memory, MiB"], peer, found["peak memory, MiB"], "MiB")


def of_input_pipeline(figures: dict) -> Iterator[Claim]:
    whole = {side: 1 / rates["all of these"] for side, rates in figures["sides"].items()}
    for peer in (side for side in whole if side.startswith("torchvision")):
        yield Claim("decode, augment, match, of one core", whole["this commit"], peer, whole[peer], "ms")


def of_postprocess(figures: dict) -> Iterator[Claim]:
    for case, found in figures.items():
        if case.startswith("the worst") and "torchvision" in found:
            ours, theirs = (found[side]["seconds"] for side in ("ours", "torchvision"))
            yield Claim(f"post-process, {case}", ours, "torchvision", theirs, "ms")


def of_deployment(figures: dict) -> Iterator[Claim]:
    peers = [name for name in figures if name.startswith("torchvision")]
    for name, seconds in figures.items():
        for peer in peers:
            if name != peer:
                yield Claim(f"a photograph from file to detections, {name}", seconds, peer, figures[peer], "ms")


OF_PART: dict[str, Callable[[dict], Iterator[Claim]]] = {
    "network": of_network,
    "cost": of_cost,
    "around_network": of_around_network,
    "memory": of_memory,
    "coco_ap": of_coco_ap,
    "input_pipeline": of_input_pipeline,
    "postprocess": of_postprocess,
    "deployment": of_deployment,
}


def claims(name: str, figures: dict) -> list[Claim]:
    """Those of a part; none for a part that has nothing to compare with."""
    return list(OF_PART[name](figures)) if name in OF_PART else []
