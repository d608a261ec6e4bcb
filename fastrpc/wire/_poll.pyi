"""Asking for the state of a socket without reading from it."""

def readable(fd: int, busy_wait: float = 0.0) -> bool:
    """Whether reading from ``fd`` would return at once: with bytes, the end or an error.

    Polls for ``busy_wait`` seconds, without the GIL, before it returns False.
    """

def hung_up(fd: int) -> bool:
    """Whether the peer has closed the connection. A write may still succeed, and unread bytes may
    be left."""
