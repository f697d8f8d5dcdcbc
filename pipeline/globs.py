"""Globs: `*`, `?` and `[..]` stay inside a folder, `**/` does not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Glob:
    """A glob by the folder before its first wildcard, and the pattern below that folder."""

    base: str
    pattern: str

    @classmethod
    def of(cls, path: str) -> Glob | None:
        """The glob that a path is; None for a path without wildcards.

        Raises:
            ValueError: it is none that could match.
        """
        wildcard = _WILDCARD.search(path)
        if wildcard is None:
            return None
        folder, slash, _ = path[: wildcard.start()].rpartition("/")
        glob = cls(folder or slash, path[len(folder + slash) :].rstrip("/"))
        try:
            glob.matches("")
        except re.error as error:
            raise ValueError(f"it is no glob: {error.msg}") from None
        return glob

    def matches(self, name: str) -> bool:
        """Whether a file's or folder's name below the base is meant."""
        return _compiled(self.pattern).fullmatch(name) is not None

    def matches_above(self, name: str) -> bool:
        """Whether a folder is meant that the file with this name lies in."""
        return _compiled(self.pattern, "/.+").fullmatch(name) is not None

    def reaches(self, folder: str) -> bool:
        """Whether a folder below the base, or what may lie in it or above it, can be meant."""
        for part, name in zip(self.pattern.split("/"), folder.split("/"), strict=False):
            if part.endswith("**"):
                return True
            if not _compiled(part).fullmatch(name):
                return False
        return True


@lru_cache(maxsize=64)
def _compiled(glob: str, more: str = "") -> re.Pattern[str]:
    """The regular expression of a glob, and of what may follow it."""
    pattern, rest = "", glob
    while rest:
        if rest.startswith("**/"):
            pattern, rest = pattern + "(?:.*/)?", rest[3:]
        elif rest[0] == "*":
            pattern, rest = pattern + "[^/]*", rest[1:]
        elif rest[0] == "?":
            pattern, rest = pattern + "[^/]", rest[1:]
        elif rest[0] == "[" and "]" in rest[2:]:
            end = rest.index("]", 2)
            body = rest[1:end].replace("\\", "\\\\").replace("[", "\\[")
            body = "^" + body[1:] if body.startswith("!") else body
            pattern, rest = f"{pattern}[{body}]", rest[end + 1 :]
        else:
            pattern, rest = pattern + re.escape(rest[0]), rest[1:]
    return re.compile(pattern + more)
