"""The stages of a pipeline. To run the worker: celery -A proj worker

A chord needs a place where its parts meet. With `chords` on, it is a queue of the broker.
"""

from collections import Counter

from celery import Celery

import fastrpc

fastrpc.install()
app = Celery("proj", broker="amqp://guest:guest@localhost//", backend="fastrpc://?chords=1")


@app.task
def count(lines):
    """The number of each word in some lines."""
    return Counter(word.lower() for line in lines for word in line.split())


@app.task
def merge(counts):
    """One count from those of all parts."""
    return sum(map(Counter, counts), Counter())


@app.task
def most_common(counts, number):
    return Counter(counts).most_common(number)
