"""A headless Chromium, steered over a pipe by the DevTools protocol: no port, no extra package.

Messages are JSON, each ended by a zero byte; the browser reads them from its file descriptor 3 and
writes to 4 (https://chromedevtools.github.io/devtools-protocol/, --remote-debugging-pipe).
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60.0
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find_chromium():
    """Path of an installed Chromium, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class BrowserError(Exception):
    """The browser is gone, silent, or refused a command."""


class Chromium:
    """One browser with one page."""

    def __init__(self, executable: str, profile: Path) -> None:
        self._to_browser, self._from_browser = os.pipe(), os.pipe()
        ours = (self._to_browser[1], self._from_browser[0])
        # The shell puts the two ends at 3 and 4, where the browser looks for them.
        redirect = f'exec "$0" "$@" 3<&{self._to_browser[0]} 4>&{self._from_browser[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, executable, *OPTIONS, f"--user-data-dir={profile}"],
            pass_fds=(self._to_browser[0], self._from_browser[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(self._to_browser[0])
        os.close(self._from_browser[1])
        self._write, self._read = ours
        self._received, self._number, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **parameters):
        """Send a command and wait for its result; what happens meanwhile joins `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") != self._number:
                self.events.append(answer)
            elif "error" in answer:
                raise BrowserError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def _receive(self):
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise BrowserError("Chromium ended" if ready else "Chromium does not answer")
            self._received += data
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def open(self, path, *, width, height=900, theme="light", phone=False):
        """Show a file at a width in pixels, in a theme, and wait until it is loaded."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression):
        """The value of a JavaScript expression in the page; that of a promise once it is there."""
        answer = self.ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, key, code):
        """Press and release a key, such as ``Tab`` of code 9."""
        text = {"text": "\r"} if key == "Enter" else {}
        known = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, **known, **text)

    def screenshot(self, width, height):
        """The upper left corner of the page as PNG, in base64."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        return self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]

    def close(self):
        """End the browser."""
        with contextlib.suppress(BrowserError, OSError):
            self._session = None
            self.ask("Browser.close")
        for end in (self._write, self._read):
            os.close(end)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
