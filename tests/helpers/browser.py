"""A headless Chromium, driven over its DevTools protocol, and pages opened in it."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "about:blank",
]
SECONDS = 30
KEYS = {"Enter": 13, "Escape": 27, "PageDown": 34, "End": 35, "Home": 36, "Tab": 9}
KEYS |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """Commands go down one pipe as JSON that ends with a zero byte; answers and events come up another."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._left = 0, b""
        self.events: list[dict] = []

    def call(self, method: str, session: str | None = None, **parameters) -> dict:
        """The result of a command; what happens meanwhile is added to events."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._commands.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer.get('error')}"
        return answer["result"]

    def _read(self) -> dict:
        while b"\0" not in self._left:
            part = self._answers.read1()
            assert part, "the browser has ended"
            self._left += part
        message, self._left = self._left.split(b"\0", 1)
        return json.loads(message)

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False, script: str = "data") -> "Page":
        """A page, once it is loaded and its script, if it has one, has defined this name."""
        page = Page(self, self.call("Target.createTarget", url="about:blank")["targetId"])
        for part in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{part}.enable")
        mobile = width < 600
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=url)
        ran = f" && typeof {script} !== 'undefined'" if script else ""
        page.wait(f"document.readyState === 'complete'{ran}")
        return page


class Page:
    """A tab of the browser."""

    def __init__(self, browser: Browser, target: str) -> None:
        self._browser, self._target = browser, target
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters) -> dict:
        """The result of a command to this tab."""
        return self._browser.call(method, self._session, **parameters)

    def js(self, expression: str):
        """The value of an expression; a promise is waited for. Asked again where the page renews itself meanwhile."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        for _ in range(10):
            try:
                answer = self.call("Runtime.evaluate", **asked)
                break
            except AssertionError as error:
                if "navigated" not in str(error):
                    raise
        else:
            raise AssertionError(f"the page never stays long enough for {expression}")
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.js(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.02)

    def settle(self) -> None:
        """Until what was changed is drawn."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def set(self, element: str, value: object, event: str = "input") -> None:
        """Give a field a value as a person does."""
        self.js(
            f"(() => {{ const field = document.getElementById({json.dumps(element)}); field.value = "
            f"{json.dumps(value)}; field.dispatchEvent(new Event({json.dumps(event)}, {{ bubbles: true }})); }})()"
        )
        self.settle()

    def click(self, selector: str) -> None:
        """Click on the first element of the selector."""
        self.js(f"document.querySelector({json.dumps(selector)}).click()")
        self.settle()

    def key(self, name: str) -> None:
        """Press a key: a name of KEYS or a letter."""
        code = {"windowsVirtualKeyCode": KEYS[name]} if name in KEYS else {}
        text = {"Enter": "\r"}.get(name, "" if name in KEYS else name)
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, text=text, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=name, **code)
        self.settle()

    def screenshot(self, path: Path) -> None:
        """A PNG of what is in sight."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _events(self, method: str) -> list[dict]:
        self.js("0")
        mine = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in mine if event["method"] == method]

    def requests(self) -> list[str]:
        """The addresses of all that was asked for so far."""
        return [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]

    def errors(self) -> list[dict]:
        """Exceptions, and what stands in the console."""
        thrown = self._events("Runtime.exceptionThrown")
        logged = [event["entry"] for event in self._events("Log.entryAdded") if event["entry"]["level"] != "verbose"]
        return thrown + logged + self._events("Runtime.consoleAPICalled")

    def close(self) -> None:
        """Close the tab."""
        self._browser.call("Target.closeTarget", targetId=self._target)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in this new folder."""
    (down, sink), (source, up) = os.pipe(), os.pipe()
    # Out of the way of 3 and 4, on which it reads and writes.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (down, up)]

    def pipes() -> None:
        for number, end in enumerate(ends, start=3):
            os.dup2(end, number)

    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, preexec_fn=pipes, close_fds=False, **quiet)
    for end in (down, up, *ends):
        os.close(end)
    try:
        with os.fdopen(sink, "wb", buffering=0) as commands, os.fdopen(source, "rb") as answers:
            yield Browser(commands, answers)
    finally:
        process.terminate()
        process.wait(SECONDS)
