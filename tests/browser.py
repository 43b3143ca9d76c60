"""Chromium without a window, at any size, in light or dark, with keys pressed: its DevTools protocol over two pipes.

https://chromedevtools.github.io/devtools-protocol/; ``--remote-debugging-pipe`` reads from descriptor 3 and writes to 4.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 30.0
needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")


class Browser:
    """One page. ``console`` has what scripts and the content security policy said."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._buffer, self._number = to, back, b"", 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self.console: list[str] = []

    def show(self, url: str, width: int, *, height: int = 1200, dark: bool = False) -> None:
        """Open an address and wait until the page is there with its pictures."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self._call("Page.navigate", url=url)
        self.until("location.href !== 'about:blank'")

    def ask(self, script: str) -> Any:
        """The value of an expression on the page."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def until(self, script: str) -> None:
        """Wait for a condition on a page that is there with its scripts; it may be replaced meanwhile."""
        deadline = time.monotonic() + SECONDS
        while not self.ask(f"document.readyState === 'complete' && ({script})"):
            assert time.monotonic() < deadline, script
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """A key, down and up, once the page is there."""
        self.until("true")
        text = {"text": key} if len(key) == 1 else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self, path: Path, *, whole: bool = False) -> Path:
        """A PNG of what is seen, or of the whole page."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))
        return path

    def _call(self, method: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": fields} | ({"sessionId": self._session} if self._session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            if answer.get("method") == "Log.entryAdded":
                self.console.append(answer["params"]["entry"]["text"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._back], [], [], SECONDS)[0], "Chromium says nothing"
            self._buffer += os.read(self._back, 1 << 20)
        first, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(first)


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser for the time of a test; its files go to ``folder``."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    command = f'exec chromium "$@" 3<&{theirs_in} 4>&{theirs_out}'
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/browser", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", *options],
        pass_fds=(theirs_in, theirs_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        process.kill()
        process.wait()
