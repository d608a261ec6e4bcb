"""Celery's repr of arguments, for what is simple: it goes into the headers of each task."""

def simple_repr(value: object, maxlen: int, maxlevels: int) -> str | None:
    """``celery.utils.saferepr.saferepr(value, maxlen, maxlevels)``, or None for Celery to do it.

    Simple is what is of exactly the type str, int (of 64 bits), float, bool, None, tuple, list or
    dict (with keys of exactly the type str), in less than ``maxlen`` characters and at most
    ``maxlevels`` levels of containers: nothing is left out of it.
    """
