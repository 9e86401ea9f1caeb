"""Names of files to records: which media belong to which caption, by the WebDataset way of naming.

`dir/000123.json`, `dir/000123.png` and `dir/000123.source.png` share the key `dir/000123`; `source` is a role. It knows
names only, no files.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

PICTURES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm", "avif")
CLIPS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "gif")
TARGET, SOURCE = "target", "source"
_REFERENCE = re.compile(r"ref[0-8]")


@dataclass
class Group:
    """Files of one key: the record, the caption text, and media by role; a role given twice keeps all its names."""

    key: str
    record: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    media: dict[str, list[str]] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        """Roles `ref0`, `ref1`, ... in order."""
        return sorted(role for role in self.media if _REFERENCE.fullmatch(role))


def split_name(name: str) -> tuple[str, str, str]:
    """Key, role and suffix of a file name: `a/b.ref0.png` -> (`a/b`, `ref0`, `png`); without a role, `target`."""
    stem, dot, suffix = name.rpartition(".")
    if not dot or "/" in suffix:
        return name, TARGET, ""
    head, _, role = stem.rpartition(".")
    if head.rpartition("/")[2] and (role in (TARGET, SOURCE) or _REFERENCE.fullmatch(role)):
        return head, role, suffix.lower()
    return stem, TARGET, suffix.lower()


def is_hidden(name: str) -> bool:
    """Whether a name, or a folder it lies in, starts with a dot, or is what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def group_names(names: Iterable[str]) -> list[Group]:
    """Group names by key, sorted by key; hidden files and other suffixes are left out."""
    groups: dict[str, Group] = {}
    for name in sorted(names):
        key, role, suffix = split_name(name)
        if is_hidden(name):
            continue
        if suffix == "json":
            groups.setdefault(key, Group(key)).record.append(name)
        elif suffix == "txt":
            groups.setdefault(key, Group(key)).text.append(name)
        elif suffix in PICTURES or suffix in CLIPS:
            groups.setdefault(key, Group(key)).media.setdefault(role, []).append(name)
    return [groups[key] for key in sorted(groups)]
