"""A real Chromium with the network off, driven over its DevTools port."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-default-browser-check", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-port=0",
    "--remote-allow-origins=*",
]  # fmt: skip


@dataclass
class Page:
    """One open page: what it asked for, what it complained of, and what it answers."""

    socket: websocket.WebSocket
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    navigations: list[str] = field(default_factory=list)
    _last: int = 0

    def send(self, method: str, **params: Any) -> Any:
        self._last += 1
        self.socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self._last:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            said = [argument.get("value", "") for argument in params["args"]]
            self.complaints.append(f"{params['type']}: {said}"[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"][:500])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
            self._last += 1
            reply = {"id": self._last, "method": "Page.handleJavaScriptDialog"}
            self.socket.send(json.dumps({**reply, "params": {"accept": False}}))
        elif method == "Page.frameNavigated":
            self.navigations.append(params["frame"]["url"])

    def run(self, script: str) -> Any:
        """What an expression gives, promises awaited."""
        given = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in given, given["exceptionDetails"]
        return given["result"].get("value")

    def wait(self, script: str, timeout_s: float = 20.0) -> None:
        limit = time.monotonic() + timeout_s
        while not self.run(script):
            assert time.monotonic() < limit, f"never came true: {script}; {self.complaints}"
            time.sleep(0.05)

    def move(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def forget(self) -> None:
        """Begin anew with what was asked and complained of."""
        for kept in (self.requests, self.complaints, self.dialogs, self.navigations):
            kept.clear()

    def open(self, path: Path) -> None:
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def print(self, path: Path) -> None:
        paper = self.send("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        path.write_bytes(base64.b64decode(paper["data"]))


@contextlib.contextmanager
def chromium(*, javascript: bool = True) -> Iterator[Page]:
    """A fresh browser with a profile of its own; gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            page = _attach(process)
            for domain in ("Page", "Runtime", "Network", "Log"):
                page.send(f"{domain}.enable")
            if not javascript:
                page.send("Emulation.setScriptExecutionDisabled", value=True)
            try:
                yield page
            finally:
                page.socket.close()
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stderr:
                process.stderr.close()


def _attach(process: subprocess.Popen[str]) -> Page:
    assert process.stderr
    for line in process.stderr:
        if found := re.search(r"ws://(127\.0\.0\.1:\d+)/", line):
            break
    else:
        raise AssertionError("chromium did not start")
    with urllib.request.urlopen(f"http://{found.group(1)}/json/list") as listed:
        (target,) = [tab for tab in json.load(listed) if tab["type"] == "page"]
    socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=60)
    return Page(socket)
