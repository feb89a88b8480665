"""What the CPU computes instead of OneFlow: kernels in numpy and numba, all behind `ops`."""
