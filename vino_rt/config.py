"""How JSON objects are read into frozen dataclasses: whole, strictly, with an error that names file and field."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vino_rt.errors import ModelError, reason


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ModelError when it is missing, damaged or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {reason(error)}; copy the file again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds no JSON object but {type(data).__name__}; copy the file again")
    return data


def take_fields(data: Mapping[str, Any], owner: type[Any], where: str) -> dict[str, Any]:
    """Keep exactly the fields of the dataclass `owner` from a parsed JSON object.

    Raises ModelError naming every field of `data` that is missing or unknown; keys that begin with an underscore only
    record which library wrote the file, and are dropped.
    """
    names = {f.name for f in fields(owner)}
    given = {k: v for k, v in data.items() if not k.startswith("_")}
    unknown, missing = sorted(set(given) - names), sorted(names - set(given))
    if unknown or missing:
        raise ModelError(
            f"{where}: missing fields {missing}, unknown fields {unknown}; expected exactly {sorted(names)}"
        )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
