"""Event loops under observation: no leftovers, no warnings of asyncio, no blocking."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import fastrpc
from tests.support.logs import Records

__all__ = ["Watchdog", "run", "until"]

FASTRPC = str(Path(fastrpc.__file__).parent)


def run(
    main: Coroutine[Any, Any, Any],
    timeout: float = 60,
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    debug: bool = True,
) -> Any:
    """Run ``main`` in asyncio's debug mode, which must report nothing; return its result.

    That mode is slow: not where a Watchdog looks.
    """
    logger, said = logging.getLogger("asyncio"), Records()
    logger.addHandler(said)
    loop = new_loop()
    try:
        loop.set_debug(debug)
        loop.slow_callback_duration = 10  # the machine may be slow
        return loop.run_until_complete(asyncio.wait_for(main, timeout))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        gc.collect()
        logger.removeHandler(said)
        bad = [line for line in said.text.splitlines() if "selector" not in line]
        assert not bad, said.text


class Watchdog:
    """Finds an event loop that fastrpc blocks for longer than it may.

    A loop is also late if the machine is busy. So it counts as blocked only if it is found at the
    same instruction repeatedly.

    Args:
        at_most: Seconds.
    """

    #: How many times in a row the loop must be found at the same instruction.
    LOOKS = 7

    def __init__(self, at_most: float = 0.01) -> None:
        self._at_most = at_most
        self._beat = time.monotonic()
        self._ended = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        #: Where the loop was blocked, one stack each.
        self.blocked: list[str] = []

    async def __aenter__(self) -> Watchdog:
        self._watched = threading.get_ident()
        self._beating = asyncio.ensure_future(self._go_on())
        self._thread.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._ended = True
        self._beating.cancel()
        self._thread.join()
        assert not self.blocked, f"the loop was blocked:\n{self.blocked[0]}"

    async def _go_on(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(self._at_most / 5)

    def _watch(self) -> None:
        before, looks = None, 0
        while not self._ended:
            began = time.monotonic()
            time.sleep(self._at_most / 2)
            now = time.monotonic()
            # If this thread, too, comes late, the machine is busy.
            if now - self._beat < self._at_most or now - began > self._at_most:
                before, looks = None, 0
                continue
            frame = sys._current_frames()[self._watched]
            here = (self._beat, id(frame), frame.f_lasti)
            looks = looks + 1 if here == before else 1
            before = here
            if looks == self.LOOKS and is_ours(frame):
                self.blocked.append("".join(traceback.format_stack(frame)))


def is_ours(frame: Any) -> bool:
    """Whether fastrpc runs in it, or waits there."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(FASTRPC):
            return True
        frame = frame.f_back
    return False


async def until(condition: Callable[[], Any], what: str, timeout: float = 10) -> None:
    """Wait, without blocking the loop, until ``condition()`` is true."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout:g} s"
        await asyncio.sleep(0.005)
