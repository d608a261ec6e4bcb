"""A task that waits for something. To run the worker: celery -A proj worker -P gevent -c 200"""

import time

from celery import Celery

import fastrpc

fastrpc.install()
app = Celery("proj", broker="amqp://guest:guest@localhost//", backend="rpc://")


@app.task
def look_up(name):
    time.sleep(0.2)  # a slow service; in a gevent worker the other tasks go on
    return name.title()
