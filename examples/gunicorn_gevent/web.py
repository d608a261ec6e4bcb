"""A WSGI application. Each request waits for a task: gunicorn web:application"""

from proj import look_up


def application(environ, start_response):
    name = environ["PATH_INFO"].strip("/")
    value = look_up.delay(name).get(timeout=10)
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [value.encode()]
