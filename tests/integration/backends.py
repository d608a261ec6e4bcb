"""Which backends the integration tests run over."""

from __future__ import annotations

import importlib.util

STOCK = "rpc://"
FAST = "fastrpc://"

# ============================ SWITCH: delete these two lines and the `if` below ============
# once fastrpc.backend is in the tree. Until then the tests hold Celery's own backend only.
FASTRPC_HAS_LANDED = importlib.util.find_spec("fastrpc.backend") is not None
# ============================================================================================

#: (the client's backend, the worker's backend): both must understand each other.
PAIRS = [(STOCK, STOCK), (FAST, FAST), (FAST, STOCK), (STOCK, FAST)]
BACKENDS = [STOCK, FAST]

if not FASTRPC_HAS_LANDED:
    PAIRS = [(STOCK, STOCK)]
    BACKENDS = [STOCK]


def pair_id(pair: tuple[str, str]) -> str:
    """(rpc://, fastrpc://) -> "stock-fast": client first; `-k stock-fast` selects it."""
    return "-".join("fast" if url == FAST else "stock" for url in pair)
