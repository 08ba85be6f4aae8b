"""Benchmarks: each module with a `run(scale)` is one. They run tiny inside the tests and large by `make bench`."""
