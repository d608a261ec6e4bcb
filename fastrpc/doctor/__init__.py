"""Finds out why nothing comes back: looks at a broker, an app and its workers, step by step.

Each check is a function that returns what it found, a mark, and what to do about it. A check that
needs another one is skipped if that one failed. The checks change nothing on the broker except for
scratch queues, which are deleted or expire after a minute.

The doctor uses only public names of fastrpc, Celery and kombu, so it works with an installation
that is broken in any way that can be imported. Its texts never contain a password.
"""

from __future__ import annotations

from .connection import explain_url
from .examination import APP_CHECKS, BROKER_CHECKS, NODE_CHECKS, examine
from .findings import Finding, Mark
from .loading import explain_import, load_app
from .settings import accepts
from .subject import Options, Subject

__all__ = [
    "APP_CHECKS",
    "BROKER_CHECKS",
    "NODE_CHECKS",
    "Finding",
    "Mark",
    "Options",
    "Subject",
    "accepts",
    "examine",
    "explain_import",
    "explain_url",
    "load_app",
]
