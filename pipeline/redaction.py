"""Credentials inside URIs, kept out of everything that is printed or recorded."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"

# Of user:password@host in a URI. AWS's passwords have slashes that nobody escapes; without a
# colon before the slash, or with a port there, an @ in a path is no credential.
_USER = re.compile(
    r"(?<=://)(?:[^/\s'\"]+|[^/@:\s'\"]+:(?!\d+/)[^@\s'\"]+)(?=@)"
    r"|(?<=s3://)[^/@:\s'\"]+:[^@\s'\"]+(?=@)"
)
_QUERY = re.compile(
    r"(?i)(?<=[?&;])([\w.-]*(?:secret|token|password|passwd|credential|signature|sig"
    r"|(?:access|account|api|shared)[_-]?key)"
    r"[\w.-]*=)[^&;#\s'\"]+"
)


def redacted(text: str) -> str:
    """The text with `***` in the place of credentials in URIs."""
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USER.sub(HIDDEN, text))


def redacted_values(value: Any) -> Any:
    """A value for JSON with every text in it redacted; tuples come back as lists."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(inner) for inner in value]
    return value


def has_credentials(text: str) -> bool:
    """Whether a URI in the text holds credentials."""
    return redacted(text) != text
