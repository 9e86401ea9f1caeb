"""Benchmarks, run from a checkout: `python -m bench NAME`; one file per question, `harness` is what they share."""
