"""Which implementation of an operation runs: looked up in a table of measured times, with a reason, never timed.

`implementations.py` says what each can do, `table.py` reads what was measured (`table.json`), `lookup.py` chooses,
`dispatch.py` calls. Importing this package loads no kernel and no Triton; `dispatch` does.
"""

from vino_kernels.choice.facts import Choice, Device, Needs, Shape, row_class
from vino_kernels.choice.implementations import OPERATIONS, Implementation, implementation_of
from vino_kernels.choice.lookup import choose
from vino_kernels.choice.table import PATH, Entry, Table, Time, packaged, read_table, render

__all__ = [
    "OPERATIONS",
    "PATH",
    "Choice",
    "Device",
    "Entry",
    "Implementation",
    "Needs",
    "Shape",
    "Table",
    "Time",
    "choose",
    "implementation_of",
    "packaged",
    "read_table",
    "render",
    "row_class",
]
