"""The watch over the file: it notices a change, and it looks no more often than it must."""

from __future__ import annotations

import asyncio

from events_core.backends.sqlite.watch import IDLE_POLL, Watch


class File:
    """A file that counts the looks at its version."""

    def __init__(self) -> None:
        self.current = 1
        self.looks = 0

    def version(self) -> int:
        self.looks += 1
        return self.current


async def looks_within(watch: Watch, file: File, seconds: float) -> int:
    """Return how often the file is looked at while one waits and nothing changes."""
    before = file.looks
    await watch.changed(seconds)
    return file.looks - before


def test_change_by_another_ends_the_wait() -> None:
    """The wait ends long before its timeout."""

    async def run() -> None:
        file = File()
        watch = Watch(file.version)
        await watch.changed(10)  # the first look takes the version for new
        waiting = asyncio.create_task(watch.changed(60))
        await asyncio.sleep(0)
        file.current += 1
        await asyncio.wait_for(waiting, 60)
        watch.stop()

    asyncio.run(run())


def test_own_change_ends_the_wait_without_a_look() -> None:
    """The file need not be asked."""

    async def run() -> None:
        file = File()
        watch = Watch(file.version)
        waiting = asyncio.create_task(watch.changed(60))
        await asyncio.sleep(0)
        watch.stir()
        await waiting
        assert file.looks == 0
        watch.stop()

    asyncio.run(run())


def test_changes_by_others_do_not_make_the_idle_look_more_often() -> None:
    """Otherwise many idle processes would keep each other busy with the upkeep of their sessions."""

    async def run() -> None:
        file = File()
        watch = Watch(file.version)
        await watch.changed(10)
        file.current += 1
        await watch.changed(10)
        assert await looks_within(watch, file, 0.5) <= 0.5 / IDLE_POLL + 1
        watch.stop()

    asyncio.run(run())


def test_another_connections_version_is_no_known_one() -> None:
    """A file that was opened again has other versions, one of which may equal the last one before."""

    async def run() -> None:
        file = File()
        watch = Watch(file.version)
        await watch.changed(10)
        watch.restart()
        await asyncio.wait_for(watch.changed(60), 60)
        watch.stop()

    asyncio.run(run())
