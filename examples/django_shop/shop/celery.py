"""The Celery app. To run the worker: celery -A shop worker"""

import os

from celery import Celery

import fastrpc

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

fastrpc.install()
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
