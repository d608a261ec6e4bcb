"""When an event loop looks at the socket of results, and is not to miss its turn."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from fastrpc.client.aio import LoopReader


class Looking(LoopReader):
    """The reading role becomes free in its first look."""

    def __init__(self, by_another_thread: bool) -> None:
        loops: Any = SimpleNamespace(side=None)
        super().__init__(loops, asyncio.get_running_loop())
        self.by_another_thread = by_another_thread
        self.looks = 0

    def _read_itself(self) -> bool:
        self.looks += 1
        intake: Any = SimpleNamespace(readers_only=True, holds_some=False)
        if not self.by_another_thread:
            self.role_is_free(intake)
        elif self.looks == 1:
            thread = threading.Thread(target=self.role_is_free, args=(intake,))
            thread.start()
            thread.join()
        return False


@pytest.mark.parametrize(("by_another_thread", "looks"), [(True, 2), (False, 1)])
def test_another_look_follows_if_another_thread_has_read_meanwhile(by_another_thread, looks):
    async def main() -> int:
        reader = Looking(by_another_thread)
        reader.ring()
        for _ in range(10):
            await asyncio.sleep(0)
        return reader.looks

    assert asyncio.run(main()) == looks
