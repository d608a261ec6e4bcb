"""The tasks of the demonstration."""

import os
import time

from celery import Celery
from kombu import Queue

import fastrpc

fastrpc.install()
app = Celery(
    "proj",
    broker=os.environ.get("BROKER_URL", "amqp://guest:guest@localhost//"),
    backend="fastrpc://?chords=1",
)
# A queue of its own: the broker may have other workers. It goes when the worker ends.
app.conf.task_default_queue = "fastrpc-demo"
app.conf.task_queues = [Queue("fastrpc-demo", routing_key="fastrpc-demo", auto_delete=True)]


@app.task
def add(x, y):
    return x + y


@app.task
def divide(x, y):
    return x / y


@app.task
def total(numbers):
    return sum(numbers)


@app.task(bind=True)
def count(self, steps):
    """Reports each step while it works."""
    for step in range(1, steps + 1):
        time.sleep(0.1)
        self.update_state(state="PROGRESS", meta={"done": step, "of": steps})
    return f"counted to {steps}"
