"""The network of the paper. It computes with numpy's BLAS, which chooses its kernels when numpy is loaded."""

from ssd300_vgg16.machine import use_widest_kernels

use_widest_kernels()
