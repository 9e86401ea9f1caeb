"""`python -m vino_kernels.ahead`: see `command.py`."""

from vino_kernels.ahead.command import main

if __name__ == "__main__":
    raise SystemExit(main())
