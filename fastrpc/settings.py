"""One Celery setting, read often.

``app.conf.<name>`` searches several mappings for several spellings of the name, which costs more
than sending a small result. A ``Setting`` knows the spellings and looks only at the application's
own changes. A change at run time takes effect.
"""

from __future__ import annotations

from typing import Any

from ._borrowed import spellings

__all__ = ["Setting"]


class Setting:
    """A setting of an app: calling it returns ``app.conf[name]``."""

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
