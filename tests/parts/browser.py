"""A real browser without a driver: Chromium, spoken to over two pipes in its own DevTools protocol.

`CHROME_PATH`, or the first of `NAMES` on the PATH. None is downloaded; tests that need one are skipped without it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-zygote",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
)
SECONDS = 300.0  # for anything that a page is waited for


def chrome() -> str | None:
    """The browser, if there is one."""
    return os.environ.get("CHROME_PATH") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page. `problems`: what its console and its security policy complain of; `requests`: every address asked."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._count, self._session, self._read = to, back, 0, "", b""
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Network.enable", maxPostDataSize=1)  # else each clip comes back over the pipe

    def call(self, method: str, **options: Any) -> dict[str, Any]:
        """One command of the protocol."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": options}
        command |= {"sessionId": self._session} if self._session else {}
        text = json.dumps(command).encode() + b"\0"
        while text:
            text = text[os.write(self._to, text) :]
        while (message := self._next()).get("id") != self._count:
            self._note(message)
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select([self._back], [], [], SECONDS)
            assert ready, ("the browser says nothing", self.problems)
            piece = os.read(self._back, 1 << 16)
            assert piece, ("the browser has ended", self.problems)
            self._read += piece
        text, _, self._read = self._read.partition(b"\0")
        return json.loads(text)

    def _note(self, message: dict[str, Any]) -> None:
        facts = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.problems.append(str(facts["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.problems.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")
        elif message["method"] == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning"):
            self.problems.append(str([each.get("value") for each in facts["args"]]))
        elif message["method"] == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, code: str) -> Any:
        """The value of an expression in the page, awaited."""
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, code: str) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + SECONDS
        while (found := self.run(code)) in (None, False, 0, ""):  # an element is {}
            assert time.monotonic() < end, (code, self.problems, self.run("document.body.innerText"))
            time.sleep(0.05)
        return found

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def press(self, key: str, text: str = "") -> None:
        """One key, where the focus is."""
        named = {"Enter": 13, "Tab": 9, " ": 32, "Escape": 27}
        facts: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": named[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, *files: Path) -> None:
        """Files for an <input type=file>."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=list(map(str, files)))

    def look(self, width: int, height: int = 900, dark: bool = False) -> None:
        """A size of the window in CSS pixels, and the colour scheme."""
        small = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **small)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browsing(program: str) -> Iterator[Page]:
    """A page in a browser of its own, which ends with the block."""
    (read, to), (back, write) = os.pipe(), os.pipe()
    # Chromium reads commands from descriptor 3, and answers on 4
    descriptors = [(os.POSIX_SPAWN_DUP2, read, 3), (os.POSIX_SPAWN_DUP2, write, 4)]
    silent = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    with TemporaryDirectory(prefix="pave-browser-", ignore_cleanup_errors=True) as home:
        command = [program, *FLAGS, f"--user-data-dir={home}", "about:blank"]
        process = os.posix_spawnp(program, command, os.environ, file_actions=[*descriptors, silent])
        os.close(read)
        os.close(write)
        try:
            yield Page(to, back)
        finally:
            os.close(to)
            os.close(back)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
