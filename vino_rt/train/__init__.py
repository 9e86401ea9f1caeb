"""Training: a stage read from TOML, the loop that walks it, and what it leaves behind.

The loop knows an objective by its protocol alone; what is learnt, from which data, lies in the objectives.
"""
