"""The benchmark: a durable upload against a plain echo, both over mutual TLS, in one interleaved run.

`python -m tests.bench` (or `make bench`) prints a table and writes build/bench.json. What is measured, and how, is in
docs/benchmark.md.
"""
