"""Checks over bare bindings are left to processes of their own, which `test_families.py` starts."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("tensorrt") else ["family"]
