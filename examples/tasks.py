"""The tasks of the demonstration. To run the worker by hand:

BROKER_URL=amqp://guest:guest@localhost// celery -A examples.tasks worker -l info
"""

import json
import os
import time

from celery import Celery

app = Celery(
    "examples",
    broker=os.environ.get("BROKER_URL", "amqp://guest:guest@localhost//"),
    backend=os.environ.get("RESULT_BACKEND", "fastrpc://"),
)
app.conf.update(
    task_default_queue=os.environ.get("DEMO_QUEUE", "fastrpc-demo"),
    broker_connection_retry_on_startup=True,
    broker_transport_options=json.loads(os.environ.get("BROKER_OPTIONS", "{}")),
)


@app.task
def add(x, y):
    return x + y


@app.task
def divide(x, y):
    return x / y


@app.task(bind=True)
def count(self, steps):
    """Reports every step while it works."""
    for step in range(1, steps + 1):
        time.sleep(0.1)
        self.update_state(state="PROGRESS", meta={"done": step, "of": steps})
    return f"counted to {steps}"
