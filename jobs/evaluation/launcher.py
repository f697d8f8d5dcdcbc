"""Runs one Python program that nobody has read, with limits, and says how it ended.

Started by `sandbox` as a script of its own, so it knows the standard library alone. On stdin it
takes one JSON object (see `Order`), on stdout it gives one: {"status", "error"}.

In the isolation `namespaces` the program sees its own processes, no network at all, and a small
file system in memory: the interpreter, the system's libraries and an empty /tmp. In `limits` it has
the limits alone, and a hook of the interpreter refuses what touches the machine: that keeps
accidents away, not attacks. In both it can start no process and no thread, and what it prints is
not kept. Run by root it becomes a user of its own, so that limits bind it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = -100, 0x8000, 442
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
# A user and a group that nobody else should be.
NOBODY = 64_987
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
MOST_ERROR = 500


@dataclass(frozen=True)
class Order:
    """What to run and within what: seconds, bytes, bytes."""

    source: str
    word: str
    root: str
    isolation: str
    seconds: float
    memory: int
    file_size: int


def main() -> None:
    """Run the program of the order on stdin."""
    order = Order(**json.load(sys.stdin))
    try:
        result = run(order)
    except OSError as error:
        result = {"status": "unavailable", "error": str(error)}
    print(json.dumps(result))


def run(order: Order) -> dict[str, str]:
    """Start the program, wait for it or end it, and judge.

    Raises:
        OSError: the kernel does not allow the isolation.
    """
    with open(os.path.join(os.path.dirname(__file__), "inside.py"), encoding="utf-8") as file:
        inside = file.read()
    if order.isolation == "namespaces":
        enter_namespaces()
        build_root(order.root)
    asked, answer = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become(order, inside, asked, answer)
        except BaseException as error:
            os.write(3, f"{order.word}{error}".encode()[:MOST_ERROR])
        os._exit(1)
    os.close(asked[0])
    os.close(answer[1])
    hooked = order.isolation == "limits"
    # The program must not find the word in its own source: it is handed over beside it.
    with contextlib.suppress(BrokenPipeError), os.fdopen(asked[1], "w") as stream:
        json.dump([order.word, hooked, order.source], stream)
    code, late = wait(child, order.seconds)
    return judge(order, code, late, read_some(answer[0]))


def wait(child: int, seconds: float) -> tuple[int, bool]:
    """The wait status of the child, and whether it had to be ended."""
    # Whoever ends this process ends the program as well.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    deadline = time.monotonic() + seconds
    pause = 0.001
    while True:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            return code, False
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1], True
        time.sleep(pause)
        pause = min(0.02, 1.5 * pause)


def judge(order: Order, code: int, late: bool, said: bytes) -> dict[str, str]:
    """What the program's end and its last word mean."""
    text = said.decode(errors="replace")
    if text.startswith(order.word):
        raise OSError(text.removeprefix(order.word))
    if late or (os.WIFSIGNALED(code) and os.WTERMSIG(code) == signal.SIGXCPU):
        return {"status": "timed out", "error": f"after {order.seconds:g} s"}
    # Without the word it was not us who said it: the program wrote into our pipe.
    with contextlib.suppress(ValueError, TypeError, KeyError):
        told = json.loads(text)
        if told["word"] == order.word:
            return {"status": str(told["status"]), "error": str(told["error"])}
    if os.WIFSIGNALED(code):
        return {"status": "failed", "error": f"signal {os.WTERMSIG(code)}"}
    return {"status": "failed", "error": "ended before its tests"}


def read_some(pipe: int) -> bytes:
    """What the pipe holds; its writers are gone."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return b""


def enter_namespaces() -> None:
    """Own processes, mounts, network and IPC; without privileges in a user namespace."""
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        call("unshare", flags)
        return
    call("unshare", flags | CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def build_root(root: str) -> None:
    """A file system in memory at `root`, only ever seen from here, with what Python needs."""
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    place = os.fsencode(root)
    call("mount", b"tmpfs", place, b"tmpfs", MS_NOSUID | MS_NODEV, b"size=16m,mode=755")
    os.umask(0o022)
    bound: list[str] = []
    for path in sorted({*LIBRARIES, sys.base_prefix, sys.base_exec_prefix}, key=len):
        inside = root + path
        if any(f"{path}/".startswith(f"{above}/") for above in bound):
            continue
        if os.path.islink(path):
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            os.symlink(os.readlink(path), inside)
        elif os.path.isdir(path):
            os.makedirs(inside)
            call("mount", os.fsencode(path), os.fsencode(inside), None, MS_BIND | MS_REC, None)
            set_read_only(inside)
            bound.append(path)
    os.makedirs(f"{root}/etc", exist_ok=True)
    if os.path.isfile("/etc/ld.so.cache"):
        with open("/etc/ld.so.cache", "rb") as old, open(f"{root}/etc/ld.so.cache", "wb") as new:
            new.write(old.read())
    os.makedirs(f"{root}/tmp", exist_ok=True)
    os.chmod(f"{root}/tmp", 0o1777)


def set_read_only(path: str) -> None:
    """The mount and all below it."""
    wanted = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    attributes = (ctypes.c_uint64 * 4)(wanted, 0, 0, 0)
    call(
        "syscall",
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        os.fsencode(path),
        ctypes.c_uint(AT_RECURSIVE),
        attributes,
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )


def become(order: Order, inside: str, asked: tuple[int, int], answer: tuple[int, int]) -> None:
    """In the child: give up everything, and become an interpreter of the script `inside`."""
    python = os.path.realpath(sys.executable)
    os.setsid()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(asked[0], 0)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    # 3 may be one of the pipe's own ends.
    kept = os.dup2(answer[1], 200, inheritable=True)
    os.closerange(3, kept)
    os.closerange(kept + 1, 4096)
    os.dup2(kept, 3, inheritable=True)
    os.close(kept)
    if order.isolation == "namespaces":
        os.chroot(order.root)
        os.chdir("/tmp")
    else:
        os.chdir(order.root)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    # Whoever kills the launcher ends the program too.
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    seconds = int(order.seconds) + 1
    for name, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, order.memory),
        (resource.RLIMIT_FSIZE, order.file_size),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_NPROC, 1),
    ):
        resource.setrlimit(name, (most, most))
    os.execve(python, [python, "-I", "-S", "-c", inside], {"LC_ALL": "C.UTF-8"})


def call(name: str, *arguments: object) -> None:
    """A function of the C library.

    Raises:
        OSError: it says so.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
