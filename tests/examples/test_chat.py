"""``examples/chat``: two pages talk in a real browser, with the keyboard alone, and see the events from the broker."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect
from starlette.types import Message
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from ..rabbitmq.server import Server
from ..servers.ports import reserved_address
from ..waiting import until

FOLDER = Path(__file__).parents[2] / "examples" / "chat"
CHROMIUM = shutil.which("chromium")
TIMEOUT = 60_000
"""Milliseconds for which the browser waits for a condition."""


@contextmanager
def serving(folder: Path, file: str, **environ: str) -> Iterator[str]:
    """Run the chat in *folder*; yield its address without the scheme."""
    with reserved_address() as address:
        port = address.rpartition(":")[2]
        command = [sys.executable, FOLDER / "chat.py", FOLDER / file, "--port", port]
        log = folder / f"{port}.log"
        with log.open("w") as output:
            server = subprocess.Popen(command, cwd=folder, env={**os.environ, **environ}, stdout=output, stderr=output)
        try:
            yield address
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                code = server.wait(60)
            finally:
                server.kill()
    assert code in (0, -signal.SIGTERM), log.read_text()
    assert "ERROR" not in log.read_text()


async def reached(address: str) -> None:
    """Return when the server accepts connections."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection(*address.split(":"))
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Start Debian's Chromium without a window."""
    if CHROMIUM is None:
        if "chromium" in os.environ.get("EVENTS_TEST_REQUIRE", "").split(","):
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield started
        finally:
            await started.close()


async def joined(browser: Browser, address: str, name: str) -> Page:
    """Open the page, and join by typing alone."""
    page = await (await browser.new_context(viewport={"width": 1100, "height": 640})).new_page()
    page.set_default_timeout(TIMEOUT)
    await page.goto(f"http://{address}/")
    await expect(page.locator("input:focus")).to_be_visible(timeout=TIMEOUT)
    await page.keyboard.type(name)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_have_text(f"You are connected as {name}.", timeout=TIMEOUT)
    return page


async def said(page: Page, text: str) -> None:
    await page.keyboard.type(text)
    await page.keyboard.press("Enter")


async def shows(page: Page, *events: str) -> None:
    """Wait until the panel shows *events*, each as "type client"."""
    panel = page.get_by_role("list", name="Events from the broker")
    for event in events:
        kind, _, client = event.partition(" ")
        row = panel.get_by_role("listitem").filter(has_text=kind).filter(has_text=client)
        await expect(row.first).to_be_visible(timeout=TIMEOUT)


def test_two_pages_with_the_keyboard_alone(tmp_path: Path) -> None:
    """Ann and Ben join, talk and leave without a mouse; the panels show connect, message and disconnect."""
    picture = Path(os.environ.get("EVENTS_TEST_PICTURES", tmp_path)) / "chat.png"

    async def main(address: str) -> None:
        await reached(address)
        async with browser() as chromium:
            ann, ben = [await joined(chromium, address, name) for name in ("Ann", "Ben")]
            await shows(ann, "client_connected Ann", "client_connected Ben")
            await said(ben, "Hello, Ann!")
            await said(ann, "Hello, <b>Ben</b>!")  # shown as it is written
            for page in (ann, ben):
                log = page.get_by_role("log", name="Conversation")
                await expect(log).to_contain_text("Hello, Ann!", timeout=TIMEOUT)
                await expect(log).to_contain_text("Hello, <b>Ben</b>!", timeout=TIMEOUT)
                await shows(page, "client_message Ann", "client_message Ben")
            # The focus goes from the message over Send to Leave.
            await ben.keyboard.press("Tab")
            await expect(ben.get_by_role("button", name="Send")).to_be_focused(timeout=TIMEOUT)
            await ben.keyboard.press("Tab")
            await expect(ben.get_by_role("button", name="Leave")).to_be_focused(timeout=TIMEOUT)
            await ben.keyboard.press("Enter")
            await expect(ben.get_by_role("status")).to_have_text("You have left.", timeout=TIMEOUT)
            await expect(ben.get_by_label("Your name")).to_be_focused(timeout=TIMEOUT)
            await shows(ann, "client_disconnected Ben")
            await ann.screenshot(path=picture)

    with serving(tmp_path, "sqlite.toml") as address:
        asyncio.run(main(address))
    assert picture.stat().st_size > 10_000


def test_everything_has_a_name(tmp_path: Path) -> None:
    """Each field, button and list has an accessible name, and each can take the focus with the Tab key."""

    async def main(address: str) -> None:
        await reached(address)
        async with browser() as chromium:
            page = await joined(chromium, address, "Ann")
            names = [
                (await page.evaluate("document.activeElement.tagName"))
                + ": "
                + await page.evaluate(
                    "(e => e.innerText.trim() && e.tagName === 'BUTTON' ? e.innerText : e.labels?.[0]?.innerText.trim()"
                    " ?? document.getElementById(e.getAttribute('aria-labelledby'))?.innerText)(document.activeElement)"
                )
                async for _ in tabs(page, 5)
            ]
            assert names == [
                "INPUT: Message",
                "BUTTON: Send",
                "BUTTON: Leave",
                "OL: Events from the broker",
                "OL: Conversation",
            ]

    with serving(tmp_path, "sqlite.toml") as address:
        asyncio.run(main(address))


async def tabs(page: Page, number: int) -> AsyncIterator[None]:
    """Yield at each stop of the Tab key, beginning where the focus is; skip the browser's own."""
    for _ in range(3 * number):
        if await page.evaluate("document.activeElement !== document.body"):
            yield
            number -= 1
        if not number:
            return
        await page.keyboard.press("Tab")


async def talk(here: str, there: str) -> list[dict[str, object]]:
    """Let one client connect, say a word and leave; return its events as another client sees them."""
    for address in {here, there}:
        await reached(address)
    async with asyncio.timeout(90), connect(f"ws://{there}/chat/Ben") as ben:
        # Both ends are up when Ben sees himself come.
        seen = [json.loads(await ben.recv())]
        async with connect(f"ws://{here}/chat/Ann") as ann:
            await ann.send("Hello")
        while not seen or (seen[-1]["event_type"], seen[-1]["client_id"]) != ("client_disconnected", "Ann"):
            seen.append(json.loads(await ben.recv()))
    return [event for event in seen if event["client_id"] == "Ann"]


def check(events: list[dict[str, object]]) -> None:
    assert [(event["event_type"], event.get("payload")) for event in events] == [
        ("client_connected", None),
        ("client_message", "Hello"),
        ("client_disconnected", None),
    ]


def test_two_servers_are_one_chat(tmp_path: Path) -> None:
    """Two servers on one file show each other's events."""
    with serving(tmp_path, "sqlite.toml") as here, serving(tmp_path, "sqlite.toml") as there:
        check(asyncio.run(talk(here, there)))


def test_a_page_that_leaves_while_it_is_shown_an_event_is_no_error() -> None:
    """It may have said something before it left, which is still to be read."""
    chat = runpy.run_path(str(FOLDER / "chat.py"))
    left = asyncio.Event()
    messages = iter(["websocket.connect", "websocket.receive", "websocket.disconnect"])

    async def receive() -> Message:
        kind = next(messages)
        if kind != "websocket.connect":
            await left.wait()
        return {"type": kind, "text": "Hello", "code": 1006}

    async def send(message: Message) -> None:
        if message["type"] == "websocket.send":
            left.set()
            raise OSError("the connection is closed")

    async def scenario() -> None:
        page = asyncio.create_task(chat["chat"](WebSocket({"type": "websocket"}, receive, send)))
        await until(lambda: bool(chat["present"]) or page.done())
        for events in chat["present"]:
            events.put_nowait("an event")
        await page
        assert not chat["present"]

    asyncio.run(scenario())
    assert next(messages, None) is None


def test_on_pubsub(emulator: str, tmp_path: Path) -> None:
    """On the emulator of Pub/Sub the events come in the same order."""
    with serving(tmp_path, "pubsub.toml", PUBSUB_EMULATOR_HOST=emulator) as address:
        check(asyncio.run(talk(address, address)))


def test_on_rabbitmq(server: Server, tmp_path: Path) -> None:
    """On a server of RabbitMQ the events come in the same order."""
    with serving(tmp_path, "rabbitmq.toml", RABBITMQ_URL=server.url) as address:
        check(asyncio.run(talk(address, address)))
