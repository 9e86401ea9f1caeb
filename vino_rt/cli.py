"""The process `vino-rt`: its exit code, and Ctrl-C from the first moment on; which subcommands there are is `commands`.

Nothing here loads torch or a backend, so that `--help` and a mistyped option answer at once.
"""

import json
import sys
from collections.abc import Sequence

from vino_rt.errors import Cancelled


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` are the process's when left out.

    The code is an error's own (`vino_rt.errors`), 130 for Ctrl-C and, without a word, 141 where whoever read stdout is
    gone (`| head`): what a shell says of other programs that end there. A file that was written by then stays.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not above: imports take a second, in which Ctrl-C comes as well.
        from vino_rt.commands.subcommands import run

        return run(given)
    except KeyboardInterrupt:
        if "--json" in given:
            event = {"event": "error", "type": "Cancelled", "message": "cancelled", "exit_code": Cancelled.exit_code}
            sys.stdout.write(json.dumps(event) + "\n")
        sys.stderr.write("cancelled\n")
        return Cancelled.exit_code
