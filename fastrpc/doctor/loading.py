"""Loads the app that the user names, or says why it cannot be loaded."""

from __future__ import annotations

import os
from pathlib import Path
from traceback import extract_tb
from typing import Any

import celery
import kombu
from celery.app.utils import find_app

import fastrpc

from .findings import Finding, Mark
from .texts import mask_urls

__all__ = ["explain_import", "load_app"]

#: The folders of those who import the user's modules, and that of Python's own modules.
LIBRARIES = tuple(f"{Path(str(m.__file__)).parent}{os.sep}" for m in (celery, kombu, fastrpc))
PYTHON = f"{Path(os.__file__).parent}{os.sep}"


def load_app(name: str) -> Any:
    """The app that ``-A name`` means to Celery.

    Raises:
        Exception: whatever the import of the user's modules raises.
    """
    app = find_app(name)
    if not isinstance(app, celery.Celery):
        raise TypeError(f"{name} is not a Celery app, it is of type {type(app).__name__}")
    app.loader.import_default_modules()
    return app


def explain_import(name: str, exc: BaseException) -> Finding:
    """Why the app cannot be loaded, and what to do."""
    module = name.partition(":")[0]
    # The text of a SyntaxError has its line.
    where = "" if isinstance(exc, SyntaxError) else place_of(exc)
    if isinstance(exc, ModuleNotFoundError) and exc.name == module.split(".")[0]:
        where = ""
        advice = "Run this in the folder of your project, or install the project here."
    elif isinstance(exc, SyntaxError) or where:
        advice = f"Correct that line; python -c 'import {module}' shows the whole traceback."
    elif isinstance(exc, (AttributeError, TypeError)):
        advice = "Name the app as module:attribute, for example -A proj.celery:app."
    else:
        advice = "Correct the settings of the app, or install what they name."
    text = f"cannot load {name}: {type(exc).__name__}: {exc}{where}"
    return Finding("app", Mark.FAIL, mask_urls(text), advice)


def place_of(exc: BaseException) -> str:
    """The last line that the user may correct; empty if only Celery and we were at work."""
    frames = [f for f in extract_tb(exc.__traceback__) if may_be_the_users(f.filename)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def may_be_the_users(file: str) -> bool:
    """Whether a file is outside of the libraries that import the user's modules."""
    of_python = file.startswith(PYTHON) and "site-packages" not in file
    return not (of_python or file.startswith(("<", *LIBRARIES)))
