"""Benchmarks of the package against its peers: python -m benchmarks (see __main__.py)."""
