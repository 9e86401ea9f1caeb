"""How `guide_and_step` is launched: one entry, since every shape is a row of elements.

Reasoned, not measured yet: 8 elements of each input for each thread. Nothing is timed when a request runs.
"""

BLOCK = 1024
WARPS = 4
