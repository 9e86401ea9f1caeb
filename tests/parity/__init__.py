"""Ours against the golden cases: `python -m tests.parity DIR...` judges every output of every case given to it."""
