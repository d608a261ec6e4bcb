"""Event loops that are watched: nothing may be left over, and asyncio may have nothing to say."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from tests.support.logs import Records

__all__ = ["run"]


def run(
    main: Coroutine[Any, Any, Any],
    timeout: float = 60,
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> Any:
    """What ``main`` returns; in asyncio's debug mode, which must find nothing to complain about."""
    logger, said = logging.getLogger("asyncio"), Records()
    logger.addHandler(said)
    loop = new_loop()
    try:
        loop.set_debug(True)
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
