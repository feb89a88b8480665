"""The command lines. Each takes this package first, before numpy, whose BLAS chooses its kernels when it is loaded."""

import sys

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.machine import MIN_WITHOUT, refuse_little_memory, use_widest_kernels

use_widest_kernels()
try:
    refuse_little_memory(MIN_WITHOUT)
except UserError as error:  # before numpy, too, and so before there is who would tell it
    print(error, file=sys.stderr)
    sys.exit(2)
