"""What is wrong with a job file, in sentences: the place, the value, what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from typing import Any

from pipeline.home import local_path

_RIGHT = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "list_type": "a list, as in [...]",
    "model_type": "a table",
    "finite_number": "a number that is not nan and not infinite",
    "missing": "given",
}


def describe(
    source: str, errors: Sequence[Mapping[str, Any]], keys: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """One line for each of pydantic's errors.

    Args:
        source: the job file's name.
        errors: what pydantic found.
        keys: the known keys of every table; "" is the top of the file.
    """
    # A union reports each of its members, with the member's name as a further step.
    places: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for error in errors:
        steps = tuple(str(step) for step in error["loc"] if not _is_type(step))
        places.setdefault(steps, []).append(error)
    for steps, members in places.items():
        place, error = ".".join(steps), members[0]
        if error["type"] == "extra_forbidden":
            yield f"{source}: {place} is not known: {_nearest(steps, keys)}"
        else:
            right = " or ".join(_RIGHT.get(e["type"]) or _expected(e) for e in members)
            found = "missing" if error["type"] == "missing" else _short(error["input"])
            yield f"{source}: {place} is {found}: it must be {right}"


def _is_type(step: object) -> bool:
    return step in ("str", "int", "float", "bool") or str(step).startswith("literal[")


def _short(value: object) -> str:
    """A value as the file has it, or nearly."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value) if isinstance(value, date | time) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _expected(error: Mapping[str, Any]) -> str:
    expected = error.get("ctx", {}).get("expected")
    return str(expected) if expected else str(error["msg"])


def _nearest(steps: Sequence[str], keys: Mapping[str, Sequence[str]]) -> str:
    table = ".".join(step for step in steps[:-1] if not step.isdigit())
    name = steps[-1].replace("-", "_")
    elsewhere = [t for t, names in keys.items() if name in names and t != table]
    if elsewhere:
        where = f"the table [{elsewhere[0]}]" if elsewhere[0] else "the top of the file"
        return f"{name} belongs into {where}"
    near = difflib.get_close_matches(name, keys[table], n=1)
    if near:
        return f"did you mean {near[0]}?"
    for other, names in keys.items():
        if far := difflib.get_close_matches(name, names, n=1, cutoff=0.75):
            return f"did you mean {far[0]}" + (f" in the table [{other}]?" if other else "?")
    return f"it can be {', '.join(keys[table])}"


def read_template(path: str, place: str) -> str:
    """A template file's text.

    Raises:
        ValueError: it cannot be read; the sentence begins with `place`, where it was named.
    """
    try:
        return local_path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # also of text that is no UTF-8, and of nobody's home
        raise ValueError(f"{place} is {path!r}, which cannot be read: {error}") from error
