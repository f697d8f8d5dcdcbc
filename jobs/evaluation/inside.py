"""Becomes the program that nobody has read; started by `launcher` with all limits in place.

On stdin: a word, whether a hook stands in for namespaces, the program. On descriptor 3 it says how
the program ended, with the word, which the program is not given.
"""

import json
import os
import sys
from typing import Any

REFUSED = (
    *("socket.", "subprocess.", "ctypes.", "shutil.", "pty.", "fcntl.", "mmap.", "syslog."),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.ch", "os.lchown", "os.link"),
    *("os.symlink", "os.truncate", "os.utime", "os.setxattr", "os.removexattr", "os.kill"),
    *("os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "signal.pthread_kill"),
    *("ensurepip.", "urllib.", "webbrowser.", "sqlite3."),
)
MODULES = {"ctypes", "_ctypes", "socket", "_socket", "multiprocessing", "_posixsubprocess"}
# These open files in C, where no hook hears of it; so do these functions.
MODULES |= {"_sqlite3", "_dbm", "_gdbm", "_multiprocessing", "_posixshmem", "readline"}
FUNCTIONS = ("mkfifo", "mknod")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MOST_ERROR = 500


def refuse(event: str, details: tuple[Any, ...]) -> None:
    """An audit hook that raises where a program touches the machine."""
    if event == "open":
        mode, flags = details[1], details[2]
        wrong = bool(isinstance(mode, str) and set(mode) & set("wax+")) or bool(flags & WRITING)
    elif event == "import":
        wrong = details[0].partition(".")[0] in MODULES
    else:
        wrong = event.startswith(REFUSED)
    if wrong:
        raise PermissionError(f"{event} {details[:1]} is not allowed here")


def main() -> None:
    """Run the program, tell its end, and leave without what it may have put in the way."""
    word, hooked, source = json.load(sys.stdin)
    sys.stdin.close()
    # Bound now, for the program may change modules.
    write, dump, leave = os.write, json.dumps, os._exit
    if hooked:
        for module in (os, sys.modules[os.name]):
            for name in FUNCTIONS:
                delattr(module, name)
        sys.addaudithook(refuse)
    status, error = "passed", ""
    try:
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})
    except MemoryError:
        status = "memory"
    except BaseException as problem:
        status, error = "failed", f"{type(problem).__name__}: {problem}"[:MOST_ERROR]
    write(3, dump({"word": word, "status": status, "error": error}).encode())
    leave(0)


if __name__ == "__main__":
    main()
