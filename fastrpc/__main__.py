"""``python -m fastrpc``: the same as the command ``fastrpc``."""

from __future__ import annotations

from .cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main(prog_name="python -m fastrpc")
