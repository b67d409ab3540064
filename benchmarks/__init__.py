"""Benchmarks of this package against its peers; ``README.md`` says how to run and read them."""
