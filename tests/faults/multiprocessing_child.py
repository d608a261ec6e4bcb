"""A process that calls tasks only in children of multiprocessing.

python -m tests.faults.multiprocessing_child URL BACKEND QUEUE METHOD WHEN

METHOD starts the child; WHEN says whether its parent imports fastrpc too: "early" or "late". A
thread of the child, which is no daemon, calls a task after everything else has ended, and prints
its result.
"""

import multiprocessing
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

URL, BACKEND, QUEUE, METHOD, WHEN = sys.argv[1:6]
if WHEN == "early":
    import fastrpc.backend  # noqa: F401

#: Its thread is idle at the end: nobody has shut it down.
executor: ThreadPoolExecutor


def call_tasks() -> None:
    global executor
    from tests.support.apps import make_app

    app = make_app(URL, BACKEND, QUEUE)
    echo = app.tasks["tests.echo"]
    executor = ThreadPoolExecutor(1)
    assert executor.submit(lambda: echo.delay("at once").get(timeout=20)).result() == "at once"
    assert echo.delay("at once").get(timeout=20) == "at once"

    def call_late() -> None:
        time.sleep(0.5)
        print(echo.delay("late").get(timeout=20), flush=True)

    threading.Thread(target=call_late).start()


if __name__ == "__main__":
    child = multiprocessing.get_context(METHOD).Process(target=call_tasks)
    child.start()
    child.join(30)
    sys.exit(child.exitcode)
