"""Text that nobody has checked (prompts, completions, ids, names), made fit to be shown.

Escaping for HTML is the template's; what is done here is what escaping leaves: characters that
steer a display, that turn the direction of reading or that cannot be seen.
"""

from __future__ import annotations

import re
import unicodedata

# The last two join or part letters: Persian and many emoji are wrong without them.
_KEPT = "\n\t\u200c\u200d"
# Cc control, Cf format (bidi, zero width), Cs half a pair, Co private, Zl and Zp separators.
_STEERING = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
_PICTURES = 0x2400  # of the control characters 0 to 31
_SECRET_NAME = re.compile(r"(?i)(secret|password|passwd|credential|api_?key|access_?key)")


def shown(text: str) -> str:
    """The text with a visible sign for every character that is none or does harm."""
    return "".join(c if _is_plain(c) else _sign(c) for c in text)


def _is_plain(character: str) -> bool:
    return character in _KEPT or unicodedata.category(character) not in _STEERING


def _sign(character: str) -> str:
    code = ord(character)
    return chr(_PICTURES + code) if code < 32 else f"⟨U+{code:04X}⟩"


def is_secret(name: str) -> bool:
    """Whether a setting of this name holds what a report must not tell."""
    return _SECRET_NAME.search(name) is not None
