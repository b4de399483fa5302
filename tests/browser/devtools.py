"""A real browser that a test drives, over Chromium's DevTools protocol: one page, its keyboard and its network."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.tooling import program

START_SECONDS = 120.0
WAIT_SECONDS = 120.0
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class Page:
    """One page of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())
        self.messages: list[str] = []
        """What the console said: errors of scripts and of the Content-Security-Policy among it."""
        self.requests: list[str] = []
        """Addresses that the page asked for."""

    async def _read(self) -> None:
        async for raw in self._socket:
            message = json.loads(raw)
            if "id" in message:
                self._replies.pop(message["id"]).set_result(message)
            else:
                self._note(message.get("method"), message.get("params", {}))

    def _note(self, method: str, given: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                self.messages.append(json.dumps(given["exceptionDetails"]))
            case "Log.entryAdded" if given["entry"]["level"] in ("warning", "error"):
                self.messages.append(f"{given['entry']['level']}: {given['entry']['text']}")
            case "Runtime.consoleAPICalled":
                self.messages.append(json.dumps(given["args"]))
            case "Network.requestWillBeSent":
                self.requests.append(given["request"]["url"])

    async def send(self, method: str, **given: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        number = next(self._ids)
        self._replies[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": given}))
        reply = await asyncio.wait_for(self._replies[number], WAIT_SECONDS)
        assert "error" not in reply, (method, reply["error"])
        result: dict[str, Any] = reply["result"]
        return result

    async def run(self, script: str) -> Any:
        """Return the value of an expression, awaited, in the page."""
        done = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def until(self, script: str) -> Any:
        """Return the value of the expression as soon as it is truthy."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not (value := await self.run(script)):  # noqa: ASYNC110 - the page's own state
                await asyncio.sleep(0.05)
        return value

    async def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page in a window of this size."""
        await self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def resize(self, width: int, height: int) -> None:
        """Give the window a size in CSS pixels."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def text(self, selector: str) -> str:
        """Return the text of the first element."""
        return str(await self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    async def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        place = f"document.querySelector({json.dumps(selector)})"
        await self.run(f"{place}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = await self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({place}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    async def key(self, name: str, code: int, *, text: str = "", modifiers: int = 0) -> None:
        """Press a key."""
        common = {"key": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        await self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    async def tab(self) -> str:
        """Press Tab and return the id of the element that has the focus then."""
        await self.key("Tab", 9)
        return str(await self.run("document.activeElement.id || document.activeElement.tagName"))

    async def write(self, selector: str, text: str) -> None:
        """Replace the text of a field, as a keyboard would."""
        await self.run(f"(field => (field.focus(), field.select()))(document.querySelector({json.dumps(selector)}))")
        await self.send("Input.insertText", text=text)

    async def choose(self, selector: str, file: Path) -> None:
        """Choose a file in a file field."""
        root = await self.send("DOM.getDocument")
        node = await self.send("DOM.querySelector", nodeId=root["root"]["nodeId"], selector=selector)
        await self.send("DOM.setFileInputFiles", files=[str(file)], nodeId=node["nodeId"])

    async def picture(self, path: Path) -> None:
        """Write a PNG of what the window shows."""
        shot = await self.send("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))

    async def close(self) -> None:
        """Stop reading."""
        self._reading.cancel()
        await self._socket.close()


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """Start Chromium without a window, with a profile in `folder`, and yield its page."""
    command = [program("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [
        "--no-first-run",
        "--disable-extensions",
        "--disable-component-update",
        "--disable-background-networking",
    ]
    command += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = await asyncio.to_thread(
        subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            address = await asyncio.to_thread(_address, folder / "DevToolsActivePort", process)
        async with connect(address, max_size=_MAX_MESSAGE_BYTES, proxy=None) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
                await page.send(f"{domain}.enable")
            yield page
            await page.close()
    finally:
        process.kill()
        process.wait()


def _address(port_file: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the address of the browser's first page, as soon as it has one."""
    while True:
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        port = port_file.read_text().split("\n")[0] if port_file.exists() else ""
        if port:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            pages = json.loads(opener.open(f"http://127.0.0.1:{port}/json/list", timeout=30).read())
            for page in pages:
                if page["type"] == "page":
                    return str(page["webSocketDebuggerUrl"])
        time.sleep(0.05)
