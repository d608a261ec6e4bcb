"""The meta of a result: the dict that ``rpc://`` sends, to the key, without its price.

Celery's ``Backend._get_result_meta`` spends most of its time finding one setting and the time
of day. Both are asked for here at each result too, only more directly.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from celery import Celery, states
from celery.backends.base import Backend

from .settings import Setting

__all__ = ["MetaBuilder"]

READY_STATES = states.READY_STATES

#: Before Celery asked the app for the time of day, the time of a result was always UTC's.
ALWAYS_UTC = "utc" in Backend._get_result_meta.__code__.co_names

#: The clock whose meaning is known here: the time of day in the app's zone.
CELERYS_NOW = Celery.now


class MetaBuilder:
    """Builds metas for one backend."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.app = backend.app
        self._extended = Setting(self.app, "result_extended")

    def build(
        self, task_id: str, state: str, result: Any, traceback: Any, request: Any
    ) -> dict[str, Any]:
        """The meta of ``result``, which is encoded already (``Backend.encode_result``)."""
        if request is None or self._extended():
            meta: dict[str, Any] = self.backend._get_result_meta(
                result=result, state=state, traceback=traceback, request=request
            )
        else:
            meta = {
                "status": state,
                "result": result,
                "traceback": traceback,
                "children": [child.as_tuple() for child in getattr(request, "children", ())],
                "date_done": self._now() if state in READY_STATES else None,
            }
            if getattr(request, "group", None):
                meta["group_id"] = request.group
            if getattr(request, "parent_id", None):
                meta["parent_id"] = request.parent_id
        meta["task_id"] = task_id
        return meta

    def _now(self) -> str:
        if ALWAYS_UTC:
            return datetime.now(timezone.utc).isoformat()
        app = self.app
        clock = app.now
        if getattr(clock, "__func__", None) is not CELERYS_NOW:
            return str(clock().isoformat())
        # From the app's dict: kombu's cached_property takes a lock at each access, and a process
        # forked while another thread holds it would wait for it for ever.
        return datetime.now(vars(app).get("timezone") or app.timezone).isoformat()
