"""`python -m ssd300_vgg16.data`: the command is in `ssd300_vgg16.inspection.command`."""

from ssd300_vgg16 import command_line
from ssd300_vgg16.inspection.command import PROGRAM, main

if __name__ == "__main__":
    command_line.run(main, PROGRAM)
