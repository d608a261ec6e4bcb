"""One Celery setting, read often.

``app.conf.<name>`` walks through several mappings and spellings of the name, which costs more
than sending a small result. Here the spellings are known and only what the application changed
is looked at each time; a setting changed while running is honoured.
"""

from __future__ import annotations

from typing import Any

from ._borrowed import spellings

__all__ = ["Setting"]


class Setting:
    """The value of ``app.conf[name]``: ``setting()``."""

    __slots__ = ("_conf", "_default", "_spellings")

    def __init__(self, app: Any, name: str) -> None:
        self._conf = app.conf
        self._spellings = spellings(self._conf, name)
        self._default = self._conf[name]

    def __call__(self) -> Any:
        changes = self._conf.changes
        for spelling in self._spellings:
            if spelling in changes:
                return changes[spelling]
        return self._default
