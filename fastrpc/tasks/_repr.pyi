"""Celery's repr of simple arguments, which goes into the headers of each task."""

def simple_repr(value: object, maxlen: int, maxlevels: int) -> str | None:
    """The same text as ``celery.utils.saferepr.saferepr(value, maxlen, maxlevels)``, or None.

    None means that ``value`` is not simple: Celery must describe it. A simple value is None or of
    exactly the type str, int (of 64 bits), float, bool, tuple, list or dict (with keys of exactly
    the type str). Its text has less than ``maxlen`` characters and at most ``maxlevels`` levels of
    containers, so that nothing is left out.
    """
