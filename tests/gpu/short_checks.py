"""The self-test made short, with a group in which OneFlow ends the process.

Networks of a few channels, and so without flowvision's; speeds of a single run; each way once that takes compiling.
"""

import sys

from ssd300_vgg16 import self_test
from ssd300_vgg16.runtime import __main__ as runtime_command
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.self_test import checks, made_up

model, groups, ways_of = made_up.model, self_test.groups, self_test.ways_of


def too_large(device):
    """More memory than there is, asked for by a thread of OneFlow's own."""
    return [flow.zeros(1 << 40, device=device).numpy()]


def short_groups(device):
    """All but the first speed, after one that ends the process."""
    yield "too large", lambda: too_large(device)
    yield from (group for group in groups(device) if group[0] != "speed of training at full width, float32")


made_up.model = lambda num_classes, width, device: model(num_classes, 0.02, device)
checks.beside_flowvision = lambda device: []
self_test.groups = short_groups
self_test.ways_of = lambda device: ways_of(device)[::2]
self_test.GPU_BATCH, self_test.SECONDS = 1, 0
if __name__ == "__main__":
    sys.exit(runtime_command.main(sys.argv[1:]))
