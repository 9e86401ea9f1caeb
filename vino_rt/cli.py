"""Entry point of the command line `vino-rt`: the exit code, and Ctrl-C before anything is imported.

The subcommands are in `vino_rt.commands`. Nothing here loads torch or a backend, so `--help` and a mistyped option
answer at once.
"""

import json
import sys
from collections.abc import Sequence

from vino_rt.errors import Cancelled


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with `arguments` (None: those of the process) and return its exit code.

    0, or the code of the error (`vino_rt.errors`); 130 for Ctrl-C; and 141, silently, if the reader of stdout went away
    (`| head`), as a shell reports for any program that SIGPIPE ends. Files already written stay.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not at the top: the import takes a second, and Ctrl-C during it must be handled as well.
        from vino_rt.commands.subcommands import run

        return run(given)
    except KeyboardInterrupt:
        if "--json" in given:
            event = {"event": "error", "type": "Cancelled", "message": "cancelled", "exit_code": Cancelled.exit_code}
            sys.stdout.write(json.dumps(event) + "\n")
        sys.stderr.write("cancelled\n")
        return Cancelled.exit_code
