"""The tasks. To run the worker: celery -A proj worker"""

import time

from celery import Celery

import fastrpc

fastrpc.install()
app = Celery("proj", broker="amqp://guest:guest@localhost//", backend="rpc://")


@app.task
def add(x, y):
    return x + y


@app.task(bind=True)
def count(self, steps):
    """Reports each step while it works."""
    for step in range(1, steps + 1):
        time.sleep(0.1)
        self.update_state(state="PROGRESS", meta={"done": step, "of": steps})
    return f"counted to {steps}"
