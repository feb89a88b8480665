"""`python -I -m ssd300_vgg16.report`: the command is in `ssd300_vgg16.cli.report`."""

from ssd300_vgg16.cli import command_line
from ssd300_vgg16.cli.report import PROGRAM, main

if __name__ == "__main__":
    command_line.run(main, PROGRAM)
