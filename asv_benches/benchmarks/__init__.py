"""Benchmarks of zomopi, run by asv: times, memory, and what counts beside them."""
