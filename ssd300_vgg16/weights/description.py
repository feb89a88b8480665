"""What a file of weights does not say by itself."""

from dataclasses import asdict, dataclass, field

from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.network.variants import SSD300_VGG16, VARIANTS, Variant

MOST_LETTERS = 120


def printable(name: str) -> str:
    """A name from a file as a terminal may be given it: no control characters, and not endless."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:MOST_LETTERS])


@dataclass(frozen=True)
class ModelDescription:
    """What a file of weights does not say by itself: how wide the network is, and what its outputs mean.

    notes: what was assumed of a file that does not say, as sentences; they are not kept.
    """

    num_classes: int
    width: float
    categories: tuple[Category, ...]
    variant: Variant = SSD300_VGG16
    notes: tuple[str, ...] = field(default=(), compare=False)

    def names(self) -> dict[int, str]:
        """The name of each label."""
        return {category.label: category.name for category in self.categories}

    def as_json(self) -> dict:
        """What `from_json` takes, for the header of a file."""
        categories = [asdict(category) for category in self.categories]
        return {
            "num_classes": self.num_classes,
            "width": self.width,
            "categories": categories,
            "variant": self.variant.name,
        }

    @classmethod
    def from_json(cls, value: dict) -> "ModelDescription":
        """The description that `as_json` wrote; raises KeyError or TypeError if it is none."""
        categories = tuple(Category(**category) for category in value["categories"])
        variant = VARIANTS[value.get("variant", SSD300_VGG16.name)]  # the first files did not name it
        return cls(value["num_classes"], value["width"], categories, variant)
