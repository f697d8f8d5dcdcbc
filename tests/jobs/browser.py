"""A real browser without a window, told what to do over its debugging pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What a page did that it should not have to: network, and whatever the console was told.
_TELLING = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")


def browser_program() -> str | None:
    """The browser's program; None where there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass
class Tab:
    """One page in the browser. `requests` and `said` are what it has done since it was opened."""

    browser: Browser
    session: str
    requests: list[str] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self, **parameters)

    def open(self, path: Path, width: int, height: int, dark: bool) -> None:
        """Show a file on a screen of this size, and wait until all of it is there."""
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.browser.loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self.browser.loaded:
            self.browser.take(self)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; its own policy does not count here."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page, not only what fits the screen."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


class Browser:
    """The other end of the pipe: JSON messages, each ended by a zero byte."""

    def __init__(self, write: Any, read: Any) -> None:
        self._write, self._read = write, read
        self._number, self._rest = 0, b""
        self.loaded = False

    def call(self, method: str, tab: Tab | None = None, **parameters: Any) -> dict[str, Any]:
        """Tell the browser something and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if tab is not None:
            message["sessionId"] = tab.session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self.take(tab)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result

    def take(self, tab: Tab | None) -> dict[str, Any]:
        """The next message; what it says of the tab is noted there."""
        while b"\0" not in self._rest:
            more = self._read.read1(65536)
            assert more, "the browser has ended"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        method = message.get("method")
        if method == "Page.loadEventFired":
            self.loaded = True
        elif tab is not None and method == "Network.requestWillBeSent":
            tab.requests.append(message["params"]["request"]["url"])
        elif tab is not None and method in _TELLING:
            tab.said.append(message["params"])
        return message

    def tab(self) -> Tab:
        """A new, empty page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Tab(self, session)


@contextmanager
def running_browser(program: str, profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; it ends with the block."""
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    # The browser reads from 3 and writes to 4; a sandbox needs rights that containers lack.
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    flags += ["--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    script = f'exec "$@" 3<&{from_us} 4>&{to_us}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", program, *flags],
        pass_fds=(from_us, to_us),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    try:
        with os.fdopen(to_browser, "wb") as write, os.fdopen(from_browser, "rb") as read:
            browser = Browser(write, read)
            yield browser
            browser.call("Browser.close")
    finally:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
