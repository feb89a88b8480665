"""Runs a command as the two processes of a job: python as_two.py COMMAND..."""

import sys

from ssd300_vgg16.distributed.job import Job
from ssd300_vgg16.distributed.launcher import supervise

sys.exit(supervise(Job(2), sys.argv[1:], list, 0, str, []))
