"""Runs a command as the two processes of a job, at MASTER_PORT if it is set: python as_two.py COMMAND..."""

import os
import sys

from ssd300_vgg16.distributed.job import job_from
from ssd300_vgg16.distributed.launcher import supervise

sys.exit(supervise(job_from({**os.environ, "NPROC": "2"}), sys.argv[1:], list, 0, str, []))
