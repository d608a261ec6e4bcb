"""Which backends the integration tests run over."""

from __future__ import annotations

STOCK = "rpc://"
FAST = "fastrpc://"

#: (the client's backend, the worker's backend): both must understand each other.
PAIRS = [(STOCK, STOCK), (FAST, FAST), (FAST, STOCK), (STOCK, FAST)]
BACKENDS = [STOCK, FAST]


def pair_id(pair: tuple[str, str]) -> str:
    """(rpc://, fastrpc://) -> "stock-fast": client first; `-k stock-fast` selects it."""
    return "-".join("fast" if url == FAST else "stock" for url in pair)
