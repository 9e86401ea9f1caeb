"""Tests of vino_rt. `pytest` runs them, `python -m tests.check` the rules a change must keep before that."""
