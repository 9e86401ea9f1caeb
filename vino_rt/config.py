"""Strict reading of JSON objects into frozen dataclasses; errors name the file and the field."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vino_rt.errors import ModelError, reason


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ModelError when the file is missing or damaged, or holds something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {reason(error)}; copy the file again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds no JSON object but {type(data).__name__}; copy the file again")
    return data


def take_fields(data: Mapping[str, Any], owner: type[Any], where: str) -> dict[str, Any]:
    """The fields of the dataclass `owner` from a parsed JSON object; lists become tuples.

    Keys that begin with an underscore only record which library wrote the file and are dropped. Raises ModelError
    naming every missing and every unknown field; `where` names the file in the message.
    """
    names = {f.name for f in fields(owner)}
    given = {k: v for k, v in data.items() if not k.startswith("_")}
    unknown, missing = sorted(set(given) - names), sorted(names - set(given))
    if unknown or missing:
        raise ModelError(
            f"{where}: missing fields {missing}, unknown fields {unknown}; expected exactly {sorted(names)}"
        )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
