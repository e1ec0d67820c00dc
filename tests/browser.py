"""Real headless Chromium over its DevTools pipe: no driver, no port, no dependency."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--remote-debugging-pipe"
).split()


class Browser:
    """One page; commands go out and replies and events come back over two pipes."""

    def __init__(self, home):
        down, up = os.pipe(), os.pipe()
        inherited = {down[0]: 3, up[1]: 4}
        # the shell puts the two ends where Chromium looks for them
        script = " ".join(f"{to}{'<' if to == 3 else '>'}&{fd}" for fd, to in inherited.items())
        command = ["bash", "-c", f'exec "$0" "$@" {script}', CHROMIUM, *FLAGS]
        self.process = subprocess.Popen(
            [*command, f"--user-data-dir={home}", "about:blank"],
            pass_fds=list(inherited),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(down[0])
        os.close(up[1])
        self.out, self.into = os.fdopen(down[1], "wb"), os.fdopen(up[0], "rb")
        self.events, self.number, self.session, self.rest = [], 0, None, b""
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Send a command and wait for its reply, keeping the events that come before it."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.out.write(json.dumps(message).encode() + b"\0")
        self.out.flush()
        while True:
            reply = self._read()
            if reply.get("id") == self.number:
                assert "error" not in reply, reply
                return reply["result"]
            self.events.append(reply)

    def _read(self):
        while b"\0" not in self.rest:
            chunk = os.read(self.into.fileno(), 1 << 16)
            assert chunk, "the browser ended"
            self.rest += chunk
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, path, *, dark=False, width=1200, height=900, script=""):
        """Load a file and wait until it is drawn; ``script`` runs before the page's own."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        if script:
            self.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.events.clear()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._read())
        drawn = "!document.getElementById('figure-data') || document.documentElement.dataset.drawn"
        frames = "requestAnimationFrame(() => requestAnimationFrame(() => done(true)))"
        look = f"const look = () => {{ if ({drawn}) {frames}; else setTimeout(look, 5); }}; look();"
        assert self.run(f"new Promise((done) => {{ {look} }})")

    def run(self, expression):
        """The value of a JavaScript expression in the page."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key, code):
        """A key, pressed and let go as a person would."""
        text = {"text": "\r"} if key == "Enter" else {}
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": code, **text}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **facts)

    def complaints(self):
        """Errors and warnings of the console, and exceptions, since the page was opened."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"]["text"])
            elif event.get("method") == "Runtime.consoleAPICalled":
                if params["type"] in ("error", "warning", "assert"):
                    found.append(str(params["args"]))
            elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] != "verbose":
                found.append(params["entry"]["text"])
        return found

    def requests(self):
        """Everything that was asked for since the page was opened, the page itself included."""
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def close(self):
        """End the browser."""
        with contextlib.suppress(AssertionError, OSError):
            self.session = None
            self.call("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.out.close()
        self.into.close()


@contextlib.contextmanager
def browser():
    """A browser with an empty home."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        opened = Browser(home)
        try:
            yield opened
        finally:
            opened.close()
