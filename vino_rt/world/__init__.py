"""A procedural world of coloured shapes that rest, move, turn and grow: scenes, pictures of them, and words for them.

It is what `vino-mini` is trained on and judged by. It knows numbers, pixels and text; no tensors, no model, no files.
"""
