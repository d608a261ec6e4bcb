"""A client process whose reply queues are counted once it has ended.

python -m tests.faults.leaving_child URL BACKEND QUEUE SCENARIO

It prints the time when its main thread ended, if the scenario needs it.
"""

import sys

URL, BACKEND, QUEUE, SCENARIO = sys.argv[1:5]
if SCENARIO == "greenlets":
    from gevent import monkey

    monkey.patch_all()

import gc  # noqa: E402
import multiprocessing  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import weakref  # noqa: E402

from celery import Celery  # noqa: E402


def make() -> Celery:
    app = Celery("leaving", broker=URL, backend=BACKEND, set_as_current=False)
    app.conf.task_default_queue = QUEUE
    return app


def call(app: Celery, value: object = 1) -> None:
    assert app.send_task("tests.echo", (value,)).get(timeout=20) == value


def never(app: Celery):
    return app.send_task("tests.echo", (1,), queue="fastrpc-faults-nobody")


def wait_in_daemon(app: Celery) -> None:
    threading.Thread(target=never(app).get, daemon=True).start()
    time.sleep(1.2)  # its first read, of a second, is over


def apps() -> None:
    """One app for each request."""
    for n in range(25):
        app = make()
        call(app, n)
        app.close()


def kept_apps() -> None:
    """Several apps that are all alive at the end."""
    made = [make() for _ in range(8)]
    for app in made:
        call(app)
    globals()["made"] = made


def collected_app() -> None:
    app = make()
    call(app)
    backend = weakref.ref(app.backend)
    app.close()
    del app
    gc.collect()
    assert backend() is None, "something holds the backend"
    print("collected", flush=True)
    sys.stdin.readline()


def greenlets() -> None:
    """One greenlet for each request of a server, 20 at a time."""
    from gevent.pool import Pool

    app = make()
    count = int(sys.argv[5])
    done = sum(1 for _ in Pool(20).imap_unordered(lambda n: call(app, n) or n, range(count)))
    assert done == count
    print("served", flush=True)
    sys.stdin.readline()


def child_of_multiprocessing(app: Celery) -> None:
    call(app)


def forks() -> None:
    """Children of os.fork and of multiprocessing."""
    app = make()
    call(app)
    pid = os.fork()
    if not pid:
        call(app)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    context = multiprocessing.get_context("fork")
    process = context.Process(target=child_of_multiprocessing, args=(app,))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    call(app)


def exit_in_thread() -> None:
    app = make()

    def leave() -> None:
        call(app)
        sys.exit(0)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    call(app)


def interrupt() -> None:
    """Ctrl-C in the middle of a get()."""
    # It is ignored where the tests were started in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    result = never(make())
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        result.get(timeout=20)
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not interrupted")


def terminate() -> None:
    """SIGTERM, handled as a server would."""
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
    app = make()
    call(app)
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM)).start()
    never(app).get(timeout=20)


def waiting_daemon() -> None:
    wait_in_daemon(make())


def waiting_daemons() -> None:
    """Daemon threads: one reads, the others sleep."""
    app = make()
    for _ in range(4):
        threading.Thread(target=never(app).get, daemon=True).start()
    time.sleep(1.2)


def sending_daemon() -> None:
    """A daemon thread that sends and waits until the end of the process."""
    app = make()

    def send() -> None:
        while True:
            call(app)

    threading.Thread(target=send, daemon=True).start()
    time.sleep(0.5)


def run_at_once(count: int, target) -> None:
    threads = [threading.Thread(target=target) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def threads() -> None:
    """One thread for each request, five at a time."""
    app = make()
    call(app)
    for _ in range(20):
        run_at_once(5, lambda: call(app))


def unread() -> None:
    """Tasks sent by many concurrent threads, without a wait."""
    app = make()
    all_sent = threading.Barrier(300)

    def send() -> None:
        never(app)
        all_sent.wait(60)

    run_at_once(300, send)


def silent_broker() -> None:
    wait_in_daemon(make())
    print("silence, please", flush=True)
    sys.stdin.readline()


globals()[SCENARIO]()
print(time.time(), flush=True)
