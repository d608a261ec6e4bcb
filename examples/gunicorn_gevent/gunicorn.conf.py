# gunicorn reads this file by itself. Leave preload_app off: the processes then load the application
# after gevent has patched the standard library.
worker_class = "gevent"
workers = 2
worker_connections = 500
