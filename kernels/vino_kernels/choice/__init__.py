"""Choose the implementation of an operation from a table of measured times, with a reason; nothing is timed here.

`implementations.py` describes what each can do, `table.py` reads the measurements (`table.json`), `lookup.py` chooses,
`dispatch.py` calls. Importing this package loads neither kernels nor Triton; importing `dispatch` does.
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
