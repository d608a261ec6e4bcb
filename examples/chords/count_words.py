"""Counts the words of a file in parallel: python count_words.py FILE

A group that is followed by a task is a chord: `merge` runs once all parts are counted, with their
results in order. No process waits for them meanwhile.
"""

import sys
from itertools import islice
from pathlib import Path

from celery import group
from proj import count, merge, most_common

LINES = 100


def parts(path):
    with Path(path).open() as file:
        while lines := list(islice(file, LINES)):
            yield lines


def main(path):
    pipeline = group(count.s(lines) for lines in parts(path)) | merge.s() | most_common.s(5)
    for word, number in pipeline.delay().get(timeout=60):
        print(f"{number:6} {word}")


if __name__ == "__main__":
    main(*sys.argv[1:])
