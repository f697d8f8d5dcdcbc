"""Who holds a lease, and whether a process of this machine still lives."""

from __future__ import annotations

import getpass
import os
import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_HIDDEN = "hidden"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lease. `place` and `born` say whether a process of this machine still lives."""

    id: str
    user: str
    host: str
    pid: int
    place: str
    born: str
    started: str
    beat: int = 0
    released: bool = False

    @classmethod
    def this_process(cls) -> Owner:
        """This process as the owner of a new lease."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user may have no name
            user = str(os.getuid())
        return cls(
            id=uuid.uuid4().hex,
            user=user,
            host=socket.gethostname(),
            pid=os.getpid(),
            place=_place(),
            born=_born(os.getpid()),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @property
    def is_gone(self) -> bool:
        """Whether it is certain that this process has ended."""
        here = bool(self.place) and self.place == _place()
        return here and bool(self.born) and _born(self.pid) not in (self.born, _HIDDEN)

    @property
    def is_here(self) -> bool:
        """Whether it is certain that this process lives, on this machine."""
        return bool(self.born) and self.place == _place() != "" and _born(self.pid) == self.born

    def __str__(self) -> str:
        return f"{self.user}@{self.host} (process {self.pid}, since {self.started})"


def _place() -> str:
    """One boot of one machine, and in it one space of process numbers; "" where it is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process was started, in ticks since boot; "" where there is no such process.

    `_HIDDEN` where there is one, but /proc (`hidepid`) shows it to others only.
    """
    try:
        # The name in parentheses may hold anything, spaces and parentheses included.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _HIDDEN if _answers(pid) else ""
    return "" if fields[0] == "Z" else fields[19]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # there is one, of another user
    except (OSError, OverflowError):
        return False
    return True
