"""A moving average of the weights, which often detects a little better than the weights themselves."""

from collections.abc import Mapping

import numpy as np

from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.model import local


class MovingAverage:
    """Exponential average of a model's parameters on their device: decay x average + (1 - decay) x weights.

    In the first steps, the decay is no higher than (1 + steps) / (10 + steps), so that the fresh weights are forgotten.
    """

    def __init__(self, model: SSD, decay: float):
        self.decay = decay
        self._model = model
        self._averages = {name: local(parameter).detach().clone() for name, parameter in model.named_parameters()}

    def update(self, steps: int) -> None:
        """Take in the weights after so many steps."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        with flow.no_grad():
            for name, parameter in self._model.named_parameters():
                self._averages[name].mul_(decay).add_(local(parameter), alpha=1 - decay)

    def tensors(self) -> dict[str, np.ndarray]:
        """The averages by the names of the parameters."""
        return {name: average.numpy() for name, average in self._averages.items()}

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Go on from `tensors`."""
        for name, array in tensors.items():
            self._averages[name].copy_(flow.tensor(np.ascontiguousarray(array)).to(self._averages[name].device))
