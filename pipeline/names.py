"""Names of result files: which job, which run, which rows.

`part-<fingerprint>-<fence>-<rows>.parquet` is a block's file, written while rows are decoded;
`merged-...` is one that a run's end made of others. The fence is the number of the run that wrote
the file (see `lease`): of two copies of a row the later run's is the better one, and a merged file
is better than the parts that it was made of.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.fingerprint import Fingerprint
from pipeline.keys import Keys

SUFFIX = ".parquet"
Flags = npt.NDArray[np.bool_]
DIGEST_CHARS = 12
_PATTERN = re.compile(r"(part|merged)-([0-9a-f]{12})-(\d{8,})-([0-9a-f]{32})\.parquet")


@dataclass(frozen=True, slots=True, order=True)
class FileName:
    """The parts of a name; they compare by how new a file is, and then in any fixed order."""

    fence: int
    merged: bool
    digest: str
    content: str

    @classmethod
    def of(
        cls, fingerprint: Fingerprint, keys: Keys, ok: Flags, fence: int, merged: bool = False
    ) -> FileName:
        """The name of the file that holds exactly these rows: their keys and which succeeded."""
        return cls(fence, merged, fingerprint.digest[:DIGEST_CHARS], content_of(keys, ok))

    @classmethod
    def parse(cls, name: str) -> FileName | None:
        """The parts of a file's name; None for a file that is not ours."""
        found = _PATTERN.fullmatch(name)
        if found is None:
            return None
        return cls(int(found[3]), found[1] == "merged", found[2], found[4])

    def __str__(self) -> str:
        kind = "merged" if self.merged else "part"
        return f"{kind}-{self.digest}-{self.fence:08d}-{self.content}{SUFFIX}"


def content_of(keys: Keys, ok: Flags) -> str:
    """What a name says of its rows: it does not depend on their order.

    Success is part of it, so that a block that is decoded twice in one run, the second time in
    vain, does not replace its first file.
    """
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    digest = hashlib.blake2b(keys[order].astype(">u8").tobytes(), digest_size=16)
    digest.update(ok[order].tobytes())
    return digest.hexdigest()
