"""What connects fastrpc to other tools; nothing here is imported unless you do it."""

from __future__ import annotations

__all__: list[str] = []
