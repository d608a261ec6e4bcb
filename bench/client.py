"""The process of one implementation through Celery: the measurements that `bench.arena` asks for.

Every received result is compared with the one that was sent.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import amqp.serialization
from celery import Celery, chord, group
from celery.app.task import Context
from celery.result import ResultSet
from kombu.utils.uuid import uuid

import fastrpc

from .awaiting import Awaiting
from .cost import peak_rss, reset_peak_rss, rss
from .messages import Messages, bodies_of, check_published
from .neighbours import Neighbours
from .serving import FIRST_VALUE, TIMEOUT, WARM, serve, values_of
from .wire import Wire, result_body


class CeleryClient(Awaiting, Neighbours, Messages):
    """The measurements through Celery's public API; the same lines for every backend."""

    packages = ("celery", "kombu", "amqp", "orjson", "redis")

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.is_redis = config["backend"].startswith("redis")
        # Kept: stock's reply queue is named after the address of the app.
        self.apps: list[Celery] = []
        self.senders: dict[bool, Celery] = {}
        #: The apps that only send, by their `confirm_publish`.
        self.callers: dict[bool | str, Celery] = {}
        self.many: Celery | None = None
        self.outstanding_app: Celery | None = None

    def hello(self) -> dict[str, Any]:
        """Return the versions; check that the expected build of py-amqp is loaded."""
        is_cython = amqp.serialization.__file__.endswith(".so")
        assert is_cython == (self.config["who"] == "rpc-cython"), amqp.serialization.__file__
        versions = super().hello()["versions"]
        if self.is_redis:
            info = self.app().backend.client.info("server")
            versions["redis-server"] = info["redis_version"]
        return {"versions": versions}

    # -- the client's side

    def app(self, **conf: Any) -> Celery:
        app = Celery(
            "bench",
            broker=self.config["broker"],
            backend=self.config["backend"],
            set_as_current=False,
        )
        app.conf.update(conf)
        self.apps.append(app)
        return app

    def reply_queue(self, app: Celery) -> str:
        """Declare the reply queue of this thread, as the first call of a task does."""
        if not self.is_redis:
            with app.producer_or_acquire() as producer:
                app.backend.on_task_call(producer, "none")
        return app.thread_oid

    def fill(self, app: Celery, ids: list[str], values: list[Any], queue: str = "") -> None:
        """Put the results of these tasks into the reply queue, as workers would."""
        bodies = ((i, result_body(i, v)) for i, v in zip(ids, values, strict=True))
        if self.is_redis:
            backend = app.backend
            pipe = backend.client.pipeline(transaction=False)
            for task_id, body in bodies:
                pipe.setex(backend.get_key_for_task(task_id), backend.expires, body)
            pipe.execute()
        else:
            wire = Wire(self.config["broker"])
            wire.fill(queue or app.thread_oid, bodies, len(ids))
            wire.close()

    def drop(self, app: Celery) -> None:
        """Close the app's connections."""
        backend = app.backend
        if self.is_redis:
            backend.client.flushdb()
        with contextlib.suppress(Exception):  # stock's fails where it never started
            (getattr(backend, "close", None) or backend.result_consumer.stop)()
        app.close()
        gc.collect()

    def intake(self, count: int, size: int | None = None) -> dict[str, Any]:
        """A ResultSet receives `count` waiting results; the time includes connecting."""
        app = self.app()
        self.reply_queue(app)
        ids, values = [uuid() for _ in range(count)], values_of(count, size)
        self.fill(app, ids, values)
        results = ResultSet([app.AsyncResult(i) for i in ids], app=app)
        with self.meter(count) as sample:
            got = results.join_native(timeout=TIMEOUT)
        assert got == values, "results differ"
        self.drop(app)
        return sample

    def unclaimed(self, count: int, weigh: bool = False) -> dict[str, Any]:
        """`count` unclaimed results arrive before the awaited one.

        `weigh` measures their memory and needs a fresh process.
        """
        app = self.app()
        self.reply_queue(app)
        ids, values = [uuid() for _ in range(count + 1)], values_of(count + 1, None)
        self.fill(app, ids, values)
        last = app.AsyncResult(ids[-1])
        before = rss()
        with self.meter(count) as sample:
            assert last.get(timeout=TIMEOUT) == values[-1]
        gc.collect()
        if weigh:
            body = len(result_body(ids[0], values[0]))
            sample["bytes_beyond_body"] = (rss() - before) / count - body
        start = time.perf_counter()
        got = []
        for task_id in reversed(ids[:-1]):
            try:
                got.append(app.AsyncResult(task_id).get(timeout=0.001))
            except Exception:
                break  # stock has lost it, and all before it
        sample["claim_us"] = (time.perf_counter() - start) / max(len(got), 1) * 1e6
        assert got == values[-2::-1][: len(got)], "results differ"
        sample["lost"] = count - len(got)
        self.drop(app)
        return sample

    def threads(self, threads: int, count: int) -> dict[str, Any]:
        """Threads get `count` waiting results one by one, an equal part each."""
        app = self.app()
        share = count // threads
        filled, start = threading.Barrier(threads + 1), threading.Barrier(threads + 1)
        plans: list[tuple[str, list[str], list[Any]]] = []
        outcomes: list[Any] = []

        def work(number: int) -> None:
            ids = [uuid() for _ in range(share)]
            values = [FIRST_VALUE + number * share + n for n in range(share)]
            plans.append((self.reply_queue(app), ids, values))
            filled.wait()
            start.wait()
            try:
                outcomes.append([app.AsyncResult(i).get(timeout=TIMEOUT) for i in ids] == values)
            except BaseException as exc:
                outcomes.append(exc)

        workers = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(threads)]
        for worker in workers:
            worker.start()
        filled.wait()
        for queue, ids, values in plans:
            self.fill(app, ids, values, queue)
        with self.meter(share * threads) as sample:
            start.wait()
            for worker in workers:
                worker.join()
        assert outcomes == [True] * threads, outcomes
        self.drop(app)
        return sample

    def outstanding(self, outstanding: int, count: int) -> dict[str, Any]:
        """`count` results arrive while this many others are awaited."""
        if self.outstanding_app is None:
            app = self.outstanding_app = self.app()
            self.reply_queue(app)
            self.waiting = [app.AsyncResult(uuid()) for _ in range(outstanding)]
            for result in self.waiting:
                app.backend.add_pending_result(result)
            self._take(app, WARM)
        return self._take(self.outstanding_app, count)

    def _take(self, app: Celery, count: int) -> dict[str, Any]:
        ids, values = [uuid() for _ in range(count)], values_of(count, None)
        results = ResultSet([app.AsyncResult(i) for i in ids], app=app)
        self.fill_unseen(app, ids, values)
        with self.meter(count) as sample:
            got = results.join_native(timeout=TIMEOUT)
        assert got == values, "results differ"
        return sample

    def fill_unseen(self, app: Celery, ids: list[str], values: list[Any]) -> None:
        """Fill a queue that is being consumed: messages under way are not in its count."""
        wire = Wire(self.config["broker"])
        bodies = [(i, result_body(i, v)) for i, v in zip(ids, values, strict=True)]
        wire.fill(app.thread_oid, bodies, 0)
        wire.close()
        time.sleep(0.1)

    def pending(self, count: int) -> dict[str, Any]:
        """The memory of a waiting result: the AsyncResult and everything behind it."""
        app = self.app()
        ids = [uuid() for _ in range(count)]
        backend = app.backend
        backend.add_pending_result(app.AsyncResult(uuid()), start_drainer=False)
        gc.collect()
        before = rss()
        with self.meter(count) as sample:
            results = [app.AsyncResult(i) for i in ids]
            for result in results:
                backend.add_pending_result(result, start_drainer=False)
        gc.collect()
        sample["bytes_each"] = (rss() - before) / count
        return sample

    def ready(self, count: int) -> dict[str, Any]:
        """ready() of a running task, in a process that has received results before."""
        app = self.app()
        self.reply_queue(app)
        warm = uuid()
        self.fill(app, [warm], [1])
        assert app.AsyncResult(warm).get(timeout=TIMEOUT) == 1
        results = [app.AsyncResult(uuid()) for _ in range(count)]
        with self.meter(count) as sample:
            answers = [result.ready() for result in results]
        assert not any(answers)
        self.drop(app)
        return sample

    def large(self, size: int) -> dict[str, Any]:
        """One large result: the time, and the peak of memory."""
        app = self.app()
        self.reply_queue(app)
        ids, values = [uuid()], values_of(1, size)
        self.fill(app, ids, values)
        gc.collect()
        result = app.AsyncResult(ids[0])
        reset_peak_rss()
        before = rss()
        with self.meter(1) as sample:
            got = result.get(timeout=TIMEOUT)
        sample["peak_per_body"] = (peak_rss() - before) / size
        assert got == values[0], "results differ"
        self.drop(app)
        return sample

    # -- calls

    def call(self, count: int, confirm: bool | str = False) -> dict[str, Any]:
        """`count` calls of send_task, until all are in the queue; with that `confirm_publish`."""
        if confirm not in self.callers:
            options = {"confirm_publish": confirm} if confirm else {}
            self.callers[confirm] = self.app(broker_transport_options=options)
        app, queue = self.callers[confirm], f"bench-sink-{os.getpid()}"
        app.send_task("bench.none", (1,), queue=queue)
        self.wire.channel.queue_purge(queue)
        with self.meter(count) as sample:
            for n in range(count):
                app.send_task("bench.none", (n,), queue=queue)
            sample["not_counted"] = self.wire.wait_count(queue, count)
        self.wire.channel.queue_purge(queue)
        return sample

    def call_large(self, part: str, size: int, count: int) -> dict[str, Any]:
        """`count` tasks whose arguments or headers (`part`) are large, and the peak of memory.

        Needs a fresh process.
        """
        app, queue, text = self.app(), f"bench-large-{os.getpid()}", "x" * size
        args, headers = ((text,), {}) if part == "arguments" else ((), {"large": text})
        app.send_task("bench.none", (1,), queue=queue)
        self.wire.channel.queue_purge(queue)
        gc.collect()
        reset_peak_rss()
        before = rss()
        with self.meter(count) as sample:
            for _ in range(count):
                app.send_task("bench.none", args, queue=queue, headers=headers)
            sample["not_counted"] = self.wire.wait_count(queue, count)
        sample["peak_per_body"] = (peak_rss() - before) / size
        self.wire.delete(queue)
        return sample

    def send_all(self, task: Any, values: list[Any]) -> ResultSet:
        """A task for each value: by apply_many() after install(), else one by one."""
        if self.config["install"]:
            return fastrpc.apply_many(task, ((value,) for value in values))
        return ResultSet([task.apply_async((value,)) for value in values])

    def call_many(self, count: int) -> dict[str, Any]:
        """`count` tasks at once, until all are in the queue."""
        return self._call_at_once(count, self.send_all)

    def call_group(self, count: int) -> dict[str, Any]:
        """group(`count`)(), after install() in a batch(), until all are in the queue."""

        def send(task: Any, values: list[Any]) -> None:
            is_ours = self.config["install"]
            with fastrpc.batch(task.app) if is_ours else contextlib.nullcontext():
                group(task.s(value) for value in values)()

        return self._call_at_once(count, send)

    def _call_at_once(self, count: int, send: Any) -> dict[str, Any]:
        queue = f"bench-many-{os.getpid()}"
        if self.many is None:
            from tests.support.apps import make_app

            self.many = make_app(self.config["broker"], self.config["backend"], queue)
            self.many.tasks["tests.echo"].apply_async((1,))
        self.wire.channel.queue_purge(queue)
        with self.meter(count) as sample:
            kept = send(self.many.tasks["tests.echo"], values_of(count, None))
            sample["not_counted"] = self.wire.wait_count(queue, count)
        del kept
        self.wire.channel.queue_purge(queue)
        return sample

    def whole(self, queue: str, workers: list[int], count: int) -> dict[str, Any]:
        """`count` tasks to a real worker, and all of their results."""

        def one_by_one(task: Any, values: list[Any]) -> ResultSet:
            return ResultSet([task.apply_async((value,)) for value in values])

        return self._whole(queue, workers, count, one_by_one)

    def whole_many(self, queue: str, workers: list[int], count: int) -> dict[str, Any]:
        """The same, sent by apply_many() after install()."""
        return self._whole(queue, workers, count, self.send_all)

    def _whole(self, queue: str, workers: list[int], count: int, send: Any) -> dict[str, Any]:
        app = self._task_app(queue)
        self.meter.watch(workers)
        values = values_of(count, None)
        with self.meter(count) as sample:
            got = send(app.tasks["tests.echo"], values).get(timeout=TIMEOUT)
        self.meter.watch([])
        assert got == values, "results differ"
        return sample

    def group(self, queue: str, workers: list[int], count: int) -> dict[str, Any]:
        """group(`count`)().get() with a real worker."""
        app = self._task_app(queue)
        self.meter.watch(workers)
        task, values = app.tasks["tests.echo"], values_of(count, None)
        with self.meter(count) as sample:
            got = group(task.s(value) for value in values)().get(timeout=TIMEOUT)
        self.meter.watch([])
        assert got == values, "results differ"
        return sample

    def chord(self, queue: str, workers: list[int], count: int, times: int = 1) -> dict[str, Any]:
        """`times` chords of `count` parts with a real worker, the next when the last has ended."""
        app = self._task_app(queue)
        self.meter.watch(workers)
        task, body = app.tasks["tests.echo"], app.tasks["tests.total"]
        values = values_of(count, None)
        with self.meter(count * times) as sample:
            for _ in range(times):
                got = chord([task.s(value) for value in values])(body.s()).get(timeout=TIMEOUT)
                assert got == sum(values), "results differ"
        self.meter.watch([])
        return sample

    def collected(
        self, queue: str, workers: list[int], count: int, times: int = 1
    ) -> dict[str, Any]:
        """The same tasks as `chord`, as groups that the client collects itself."""
        app = self._task_app(queue)
        self.meter.watch(workers)
        task, values = app.tasks["tests.echo"], values_of(count, None)
        with self.meter(count * times) as sample:
            for _ in range(times):
                got = group(task.s(value) for value in values)().get(timeout=TIMEOUT)
                assert got == values, "results differ"
        self.meter.watch([])
        return sample

    def call_and_wait(self, queue: str, workers: list[int], count: int) -> dict[str, Any]:
        """`count` tasks to a real worker, each sent after the previous result has arrived."""
        app = self._task_app(queue)
        self.meter.watch(workers)
        call, values = app.tasks["tests.echo"].delay, values_of(count, None)
        with self.meter(count) as sample:
            got = [call(value).get(timeout=TIMEOUT) for value in values]
        self.meter.watch([])
        assert got == values, "results differ"
        return sample

    def _task_app(self, queue: str) -> Celery:
        """The app that sends tasks to that worker, warmed up by a first answer."""
        for app in self.apps:
            if app.conf.task_default_queue == queue:
                return app
        from tests.support.apps import make_app

        app = make_app(self.config["broker"], self.config["backend"], queue)
        self.apps.append(app)
        sent = [app.tasks["tests.echo"].apply_async((n,)) for n in range(WARM)]
        assert app.ResultSet(sent).get(timeout=TIMEOUT) == list(range(WARM))
        return app

    # -- the worker's side

    def store(self, size: int, count: int, persistent: bool) -> dict[str, Any]:
        """`count` calls of store_result, until all results are in the caller's queue."""
        app = self.senders.get(persistent)
        if app is None:
            app = self.senders[persistent] = self.app(result_persistent=persistent)
        store = app.backend.store_result
        queue = f"bench-results-{uuid()}"
        self.wire.declare(queue)
        ids, values = [uuid() for _ in range(count)], values_of(count, size)
        requests = [Context({"id": i, "reply_to": queue, "correlation_id": i}) for i in ids]
        for _ in range(WARM if size < 100_000 else 1):
            store(uuid(), values[0], "SUCCESS", request=requests[0])
        if not self.is_redis:
            self.wire.wait_count(queue, 1)
            time.sleep(0.05)
            self.wire.channel.queue_purge(queue)
        with self.meter(count) as sample:
            start = time.perf_counter()
            for task_id, value, request in zip(ids, values, requests, strict=True):
                store(task_id, value, "SUCCESS", request=request)
            sample["returned_us"] = (time.perf_counter() - start) / count * 1e6
            if not self.is_redis:
                sample["not_counted"] = self.wire.wait_count(queue, count)
        self._check_stored(app, queue, ids, values)
        self.wire.delete(queue)
        return sample

    def _check_stored(self, app: Celery, queue: str, ids: list[str], values: list[Any]) -> None:
        if self.is_redis:
            client, key = app.backend.client, app.backend.get_key_for_task
            bodies = [json.loads(client.get(key(i))) for i in ids]
            client.flushdb()
        else:
            reader = Wire(self.config["broker"])
            found = {i: body for i, _, body in reader.messages(queue, len(ids))}
            reader.close()
            bodies = [json.loads(found[i]) for i in ids]
        assert [body["task_id"] for body in bodies] == ids
        assert [body["result"] for body in bodies] == values, "results differ"

    def latency(self, count: int) -> dict[str, Any]:
        """store_result and get() of one result after the other, in one process."""
        app = self.app()
        backend, queue = app.backend, self.reply_queue(app)

        def there_and_back(value: Any) -> float:
            task_id = uuid()
            request = Context({"id": task_id, "reply_to": queue, "correlation_id": task_id})
            if self.is_redis:  # its part of apply_async: subscribe
                backend.result_consumer.consume_from(task_id)
            result = app.AsyncResult(task_id)
            start = time.perf_counter()
            backend.store_result(task_id, value, "SUCCESS", request=request)
            got = result.get(timeout=TIMEOUT)
            took = time.perf_counter() - start
            assert got == value
            return took

        for _ in range(WARM):
            there_and_back("warm")
        values = values_of(count, None)
        with self.meter(count) as sample:
            sample["latencies"] = [there_and_back(value) for value in values]
        self.drop(app)
        return sample

    # -- the parser alone

    def parser(self, count: int) -> dict[str, Any]:
        """Parse `count` small deliveries in memory: tag, correlation id and body of each."""
        from .parsing import deliveries, parse_fastrpc, parse_pyamqp

        parse = parse_fastrpc if self.config["backend"].startswith("fastrpc") else parse_pyamqp
        data, ids = deliveries(count)
        with self.meter(count) as sample:
            found = parse(data, count)
        assert [correlation_id for _, correlation_id, _ in found] == ids
        assert [tag for tag, _, _ in found] == list(range(1, count + 1))
        return sample


class RawClient(CeleryClient):
    """The limit: only moves the same bytes to and from the same broker."""

    def intake(self, count: int, size: int | None = None) -> dict[str, Any]:
        queue = f"bench-raw-{uuid()}"
        ids, values = [uuid() for _ in range(count)], values_of(count, size)
        self.wire.declare(queue)
        bodies = [result_body(i, v) for i, v in zip(ids, values, strict=True)]
        self.wire.fill(queue, zip(ids, bodies, strict=True), count)
        one = self.wire.encoder()(queue, ids[0], bodies[0])
        buffer = bytearray(count * self.wire.delivered_size(queue, one))
        with self.meter(count) as sample:
            wire = Wire(self.config["broker"])
            wire.consume(queue)
            data = wire.receive(len(buffer), buffer)
        found = wire.deliveries(data)
        assert [json.loads(found[i])["result"] for i in ids] == values, "results differ"
        wire.close()
        self.wire.delete(queue)
        return sample

    def large(self, size: int) -> dict[str, Any]:
        sample = self.intake(1, size)
        sample["peak_per_body"] = 1.0
        return sample

    def store(self, size: int, count: int, persistent: bool) -> dict[str, Any]:
        queue, wire = f"bench-results-{uuid()}", Wire(self.config["broker"])
        self.wire.declare(queue)
        ids, values = [uuid() for _ in range(count)], values_of(count, size)
        encode = wire.encoder(2 if persistent else 1)
        frames = [encode(queue, i, result_body(i, v)) for i, v in zip(ids, values, strict=True)]
        send = wire.sock.sendall
        with self.meter(count) as sample:
            start = time.perf_counter()
            for data in frames:
                send(data)
            sample["returned_us"] = (time.perf_counter() - start) / count * 1e6
            sample["not_counted"] = self.wire.wait_count(queue, count)
        wire.close()
        self._check_stored(self.apps, queue, ids, values)
        self.wire.delete(queue)
        return sample

    def latency(self, count: int) -> dict[str, Any]:
        queue, out, back = f"bench-raw-{uuid()}", *(Wire(self.config["broker"]) for _ in "12")
        out.declare(queue)
        back.consume(queue)
        encode = out.encoder()
        ids, values = [uuid() for _ in range(count)], values_of(count, None)
        frames = [encode(queue, i, result_body(i, v)) for i, v in zip(ids, values, strict=True)]
        size = back.delivered_size(queue, frames[0])
        for _ in range(WARM):
            out.sock.sendall(frames[0])
            # The answer to the request to consume comes first, if it was asked for.
            back.receive(size)
        received, took = [], []
        with self.meter(count) as sample:
            for frame in frames:
                start = time.perf_counter()
                out.sock.sendall(frame)
                received.append(back.receive(size))
                took.append(time.perf_counter() - start)
        sample["latencies"] = took
        found = back.deliveries(b"".join(received))
        assert [json.loads(found[i])["result"] for i in ids] == values, "results differ"
        out.delete(queue)
        out.close()
        back.close()
        return sample

    def task_frames(self, queue: str, replies: str, count: int) -> tuple[list[bytes], list[str]]:
        """The bytes that stock writes for `count` tasks: copies of one that is really sent."""
        app, sink = self.app(), f"bench-copy-{uuid()}"
        old = uuid()
        app.send_task("tests.echo", (FIRST_VALUE,), task_id=old, queue=sink, reply_to=replies)
        wire = Wire(self.config["broker"])
        ((_, header, body),) = list(wire.messages(sink, 1))
        wire.close()
        self.wire.delete(sink)
        whole = self.wire.frames(queue, header, body)
        ids = [uuid() for _ in range(count)]
        value = str(FIRST_VALUE).encode()
        copies = [
            whole.replace(old.encode(), i.encode()).replace(value, str(FIRST_VALUE + n).encode())
            for n, i in enumerate(ids)
        ]
        self.drop(app)
        return copies, ids

    def write(self, queue: str, parts: list[bytes], count: int) -> dict[str, Any]:
        """Write the parts, which hold `count` messages, one by one, until all are in the queue."""
        wire = Wire(self.config["broker"])
        send = wire.sock.sendall
        with self.meter(count) as sample:
            for data in parts:
                send(data)
            sample["not_counted"] = self.wire.wait_count(queue, count)
        wire.close()
        return sample

    def call(self, count: int) -> dict[str, Any]:
        queue = f"bench-sink-{uuid()}"
        self.wire.declare(queue)
        frames, _ = self.task_frames(queue, "nowhere", count)
        sample = self.write(queue, frames, count)
        self.wire.delete(queue)
        return sample

    def call_many(self, count: int) -> dict[str, Any]:
        queue = f"bench-sink-{uuid()}"
        self.wire.declare(queue)
        frames, _ = self.task_frames(queue, "nowhere", count)
        parts = [b"".join(frames[n : n + 100]) for n in range(0, count, 100)]
        sample = self.write(queue, parts, count)
        self.wire.delete(queue)
        return sample

    def whole(self, queue: str, workers: list[int], count: int) -> dict[str, Any]:
        # One name for the life of the worker, which reads it once.
        replies = f"bench-raw-replies-{os.getpid()}"
        self.wire.declare(replies)
        frames, ids = self.task_frames(queue, replies, count)
        out, back = Wire(self.config["broker"]), Wire(self.config["broker"])
        back.consume(replies)
        values = values_of(count, None)
        one = self.wire.encoder()(replies, ids[0], result_body(ids[0], values[0]))
        buffer = bytearray(count * back.delivered_size(replies, one))
        self.meter.watch(workers)
        send = out.sock.sendall
        with self.meter(count) as sample:
            for data in frames:
                send(data)
            back.receive(len(buffer), buffer)
        self.meter.watch([])
        found = back.deliveries(buffer)
        assert [json.loads(found[i])["result"] for i in ids] == values, "results differ"
        out.close()
        back.close()
        self.wire.delete(replies)
        return sample

    group = whole

    def publish(self, count: int) -> dict[str, Any]:
        queue, bodies = f"bench-raw-{uuid()}", bodies_of(count)
        self.wire.declare(queue)
        encode = self.wire.encoder()
        sample = self.write(queue, [encode(queue, i, body) for i, body in bodies], count)
        check_published(self.config["broker"], queue, bodies)
        self.wire.delete(queue)
        return sample

    def consume(self, count: int) -> dict[str, Any]:
        return self.intake(count)

    def c_parser(self, binary: str) -> dict[str, Any]:
        """The C reader without Python: bench/c/parser_rate.c, built."""
        said = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
        second = 1 / float(said.split(":")[1].split()[0])
        return {"wall": second, "cpu": {"client": second}}


def main(config: dict[str, Any]) -> None:
    if config["install"]:
        fastrpc.install()
    serve((RawClient if config["who"] == "raw" else CeleryClient)(config))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
