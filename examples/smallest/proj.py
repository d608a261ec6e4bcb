"""A task. To run the worker: celery -A proj worker"""

from celery import Celery

import fastrpc

fastrpc.install()
app = Celery("proj", broker="amqp://guest:guest@localhost//", backend="rpc://")


@app.task
def add(x, y):
    return x + y
