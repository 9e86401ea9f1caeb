"""Arguments of a program's calls, held against what they may be; the command line has checks of its own."""

from vino_rt.errors import InputError


def check_argument(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise InputError, which says what is expected, for a value of none of these types."""
    if not isinstance(value, kinds):
        raise InputError(f"{name} is {value!r}; give {expected}")
