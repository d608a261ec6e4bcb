"""A task for each row. To run the worker: celery -A proj worker"""

from celery import Celery

import fastrpc

fastrpc.install()
app = Celery("proj", broker="amqp://guest:guest@localhost//", backend="rpc://")


@app.task
def save(number, name):
    """Here a row would go into the database."""
    return number
