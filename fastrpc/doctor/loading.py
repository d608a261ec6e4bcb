"""Loads the app that the user names, or says why it cannot be loaded."""

from __future__ import annotations

from traceback import extract_tb
from typing import Any

import celery
from celery.app.utils import find_app

from .findings import Finding, Mark
from .texts import mask_urls

__all__ = ["explain_import", "load_app"]


def load_app(name: str) -> Any:
    """The app that ``-A name`` means to Celery.

    Raises:
        Exception: whatever the import of the user's modules raises.
    """
    app = find_app(name)
    if not isinstance(app, celery.Celery):
        raise TypeError(f"{name} is not a Celery app, it is a {type(app).__name__}")
    app.loader.import_default_modules()
    return app


def explain_import(name: str, exc: BaseException) -> Finding:
    """Why the app cannot be loaded, and what to do."""
    frames = [f for f in extract_tb(exc.__traceback__) if "importlib" not in f.filename]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    module = name.partition(":")[0]
    advice = f"Correct that line; python -c 'import {module}' shows the whole traceback."
    if isinstance(exc, ModuleNotFoundError) and exc.name == module.split(".")[0]:
        where = ""
        advice = "Run this in the folder of your project, or install the project here."
    elif isinstance(exc, (AttributeError, TypeError)):
        advice = "Name the app as module:attribute, for example -A proj.celery:app."
    text = f"cannot load {name}: {type(exc).__name__}: {exc}{where}"
    return Finding("app", Mark.FAIL, mask_urls(text), advice)
