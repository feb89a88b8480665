"""The command lines. Each takes this package first, before numpy, whose BLAS chooses its kernels when it is loaded."""

from ssd300_vgg16.machine import use_widest_kernels

use_widest_kernels()
