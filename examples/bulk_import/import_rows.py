"""Sends rows as tasks, many at once, and shows how far they are: python import_rows.py 10000

`apply_many` sends a chunk in a few writes. Only so many chunks are under way at a time, so that the
queue and the memory of this process stay small, however many rows there are.
"""

import sys
from collections import deque
from itertools import islice

from proj import save
from rich.progress import track

import fastrpc

CHUNK = 500
UNDER_WAY = 4


def chunks(rows, size):
    while chunk := list(islice(rows, size)):
        yield chunk


def import_rows(rows):
    """Yield the results of each chunk, in the order of the rows."""
    under_way = deque()
    for chunk in chunks(rows, CHUNK):
        under_way.append(fastrpc.apply_many(save, chunk))
        if len(under_way) == UNDER_WAY:
            yield under_way.popleft().get(timeout=60)
    while under_way:
        yield under_way.popleft().get(timeout=60)


def main(count=10_000):
    rows = ((number, f"row {number}") for number in range(count))
    done = 0
    for saved in track(import_rows(rows), "importing", total=-(-count // CHUNK)):
        done += len(saved)
    print(f"{done} rows imported")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
