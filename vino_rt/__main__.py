"""`python -m vino_rt` is `vino-rt`."""

from vino_rt.cli import main

raise SystemExit(main())
