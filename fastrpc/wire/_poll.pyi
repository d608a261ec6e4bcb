"""Asking a socket without reading from it."""

def readable(fd: int, busy_wait: float = 0.0) -> bool:
    """Whether reading from ``fd`` would return at once: with bytes, the end or an error.

    Looks again and again for ``busy_wait`` seconds, without the GIL, before it says no.
    """

def hung_up(fd: int) -> bool:
    """Whether the peer has closed the connection, read or not: a write to it may still succeed."""
