"""Step metrics since the last report: the losses, and how fast the steps were."""

import resource
import time
from typing import TYPE_CHECKING

import numpy as np

from ssd300_vgg16.training.step import NotFinite

if TYPE_CHECKING:
    import oneflow as flow
else:
    from ssd300_vgg16.runtime import flow


class StepMetrics:
    """Metrics of steps on their way from the device; `values` [N][R] are those already fetched.

    A checkpoint in the middle of a report keeps `values`, so that a run that goes on from it reports the same.
    """

    def __init__(self, names: tuple[str, ...], values: list[list[float]]):
        self.names = names
        self.values = list(values)
        self._on_the_way: list[tuple[int, flow.Tensor]] = []

    def add(self, step: int, metrics: flow.Tensor) -> None:
        """Take the metrics [R] of a step."""
        # Sent at once: the device does things in order, and what is asked for later comes after later steps.
        self._on_the_way.append((step, metrics.to("cpu")))

    def fetch(self, unfinished: int = 0) -> None:
        """Wait for the values of all steps but the last so many; raises NotFinite for the first that is not finite."""
        while len(self._on_the_way) > unfinished:
            step, metrics = self._on_the_way[0]
            row = metrics.numpy()
            if not np.isfinite(row).all():
                raise NotFinite(row, step)
            self.values.append(row.tolist())
            del self._on_the_way[0]

    def take_means(self) -> dict[str, float]:
        """Means since the last time, by name."""
        self.fetch()
        means = dict(zip(self.names, np.mean(self.values, axis=0).tolist(), strict=True))
        self.values = []
        return means


class Pace:
    """Images per second, and the share of the time that was spent waiting for data, since the last `take`."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._clear()

    def _clear(self) -> None:
        self._steps, self._waited, self._since = 0, 0.0, time.perf_counter()

    def add(self, waited: float) -> None:
        """Count a step that had to wait so many seconds for its batch."""
        self._steps += 1
        self._waited += waited

    def take(self) -> dict[str, float]:
        """The figures since the last time, by name."""
        seconds = time.perf_counter() - self._since
        figures = {
            "images_per_second": self._steps * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
        }
        self._clear()
        return figures


def memory(device: str) -> dict[str, int]:
    """Memory in MB: this process's maximum so far in main memory, and what all users of the GPU have there now."""
    used = {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    if device != "cpu":
        used["gpu_memory_mb"] = round(flow._oneflow_internal.GetCUDAMemoryUsed())
    return used
