"""What a file of weights does not say by itself."""

from dataclasses import dataclass

from ssd300_vgg16.data.dataset import Category


@dataclass(frozen=True)
class ModelDescription:
    """What a file of weights does not say by itself: how wide the network is, and what its outputs mean."""

    num_classes: int
    width: float
    categories: tuple[Category, ...]

    def names(self) -> dict[int, str]:
        """The name of each label."""
        return {category.label: category.name for category in self.categories}
