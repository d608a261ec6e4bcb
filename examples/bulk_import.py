"""Sends the rows of a file as tasks, many at once, and shows how far they are.

    celery -A examples.tasks worker -P solo
    python -m examples.bulk_import 10000

`apply_many` sends a chunk in a few writes. Only so many chunks are under way at a time, so that the
queue and the memory of this process stay small, however long the file is.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from rich.progress import track

import fastrpc

from .tasks import add

CHUNK = 500
UNDER_WAY = 4


def chunks(rows: Iterable[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk


def import_rows(rows: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Yield the results of each chunk, in the order of the rows."""
    under_way: deque = deque()
    for chunk in chunks(rows, CHUNK):
        under_way.append(fastrpc.apply_many(add, chunk))
        if len(under_way) == UNDER_WAY:
            yield under_way.popleft().get(timeout=60)
    while under_way:
        yield under_way.popleft().get(timeout=60)


def main(count: int = 10_000) -> None:
    rows = ((n, 1) for n in range(count))
    done = 0
    for values in track(import_rows(rows), "importing", total=-(-count // CHUNK)):
        done += len(values)
    print(f"{done} rows imported")


if __name__ == "__main__":
    fastrpc.install()
    main(*map(int, sys.argv[1:]))
