"""Matches message bodies with the AsyncResults that wait for them. No I/O.

A body whose task has waiters is decoded and handed to each of them; a body without waiters is kept
undecoded until it is asked for. Non-final states (STARTED, RETRY, PROGRESS, custom) arrive on the
same queue: the newest is kept, and only a final one ends the wait.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from celery import states
from celery.exceptions import SoftTimeLimitExceeded
from celery.result import AsyncResult, ResultBase
from kombu.compression import decompress
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.utils.json import loads as kombu_loads

from .._json import MISS
from ..errors import BadMessage, ResultDropped, ResultTooLarge
from ..serialization import decode, means_kombu_json
from ..stats import ReceivedStats
from ._matcher import Claimed, Fulfiller
from ._pending import DONE, LOST, UNCLAIMED, WAITING, PendingTable
from ._wait import ReadingRole, Watchers
from .names import owner_of

__all__ = ["JSON", "ResultMatcher", "body_format"]

logger = logging.getLogger("fastrpc")

READY_STATES = states.READY_STATES

#: The format of nearly every body: JSON in UTF-8, not compressed.
JSON = b""

#: States of an id whose result arrived but is not kept in the table.
GONE = frozenset({DONE, LOST})

#: At most this many bytes follow the task id in a body, with every serializer we know.
TAIL = 24

#: How many results that were seen by polling (``ready()``, ``state``) are kept for a later
#: ``get()`` by another AsyncResult. Celery's own backend keeps as many.
MAX_SEEN = 8192

#: The longest format that can be kept, in bytes.
MAX_FORMAT = 255

#: The format that replaces one that cannot be kept.
UNUSABLE = b"unusable content type\0binary\0"

#: The format of the reason that is kept in place of an unusable message. No message has this
#: format, see ``body_format``.
REFUSED = b"refused"

#: Reason of a bad message -> the exception of its task, if that is not BadMessage.
REFUSALS: dict[str, type[Exception]] = {
    "content type not accepted": ContentDisallowed,
    "undecodable": DecodeError,
    "too large": ResultTooLarge,
}

#: Reason of a bad message -> advice for the user.
ADVICE = {
    "content type not accepted": "add it to result_accept_content if you trust the workers",
    "undecodable": (
        "do the worker and this process have the same result_serializer? "
        "msgpack, for one, does not decode a dict with integer keys"
    ),
    "too large": "return something smaller, or raise max_body",
}

#: The longest correlation id, and so the longest task id, in UTF-8.
MAX_ID = 255

#: The least time, in seconds, between two warnings that unclaimed results were dropped.
EVICTION_WARNING_INTERVAL = 60.0

#: The least time, in seconds, between two warnings of a bad message with the same reason.
BAD_MESSAGE_WARNING_INTERVAL = 1.0


def body_format(content_type: str, content_encoding: str, compression: str = "") -> bytes:
    """How to decode a body, in a short form that is kept with each unclaimed body."""
    if content_type == "application/json" and content_encoding == "utf-8" and not compression:
        return JSON
    format = "\0".join((content_type, content_encoding, compression)).encode(errors="replace")
    return format if len(format) <= MAX_FORMAT and format.count(0) == 2 else UNUSABLE


class ResultMatcher:
    """Matches the bodies that arrive with the results that wait.

    Args:
        table: Correlation id -> waiters, or the undecoded body.
        watchers: The waits that are told when a result is ready.
        role: The reading role; callbacks of results may read meanwhile.
        accept: Content types that may be decoded (``result_accept_content``).
        to_python: Celery's ``Backend.meta_from_decoded``.
        stats: Counters to keep.
        max_age: Seconds after which an unclaimed body is dropped; None keeps it.
        max_claimed: How many results are kept after they were handed out.
        max_claimed_bytes: The same limit in bytes.
    """

    def __init__(
        self,
        table: PendingTable,
        watchers: Watchers,
        role: ReadingRole,
        *,
        accept: frozenset[str] | None,
        to_python: Callable[[dict[str, Any]], dict[str, Any]],
        stats: ReceivedStats,
        max_age: float | None,
        max_claimed: int,
        max_claimed_bytes: int,
    ) -> None:
        self.table = table
        self.watchers = watchers
        self.accept = accept
        self.to_python = to_python
        self.stats = stats
        self.max_age = max_age
        #: The bodies that were handed out last.
        self.claimed = Claimed(max_claimed, max_claimed_bytes)
        #: Makes AsyncResults ready and tells the waits that watch them.
        self.fulfiller = Fulfiller(
            table,
            self.claimed,
            watchers,
            role,
            is_plain=_is_plain,
            as_python=self._as_python,
            on_error=_log_callback_error,
            thrown_in=(SoftTimeLimitExceeded,),
        )
        self._next_expiry = 0.0
        self._next_warning = 0.0
        self._evicted_before = 0
        self._next_report: dict[str, float] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()

    def clear(self) -> None:
        """Forget everything, as in a forked child."""
        self.table.clear()
        self.claimed.clear()
        self._seen.clear()
        self.fulfiller.fulfilled = 0

    # -- waiting -----------------------------------------------------------------------------

    def add(self, result: Any, weak: bool = False) -> bool:
        """Register ``result`` (an AsyncResult) as waiting; if its final state is kept, make it
        ready.

        Returns:
            False if it would wait for ever, see ``check_obtainable``.
        """
        if result._cache:
            return True
        table, task_id = self.table, result.id
        waiter = self._weak_waiter(result) if weak else result
        progress: tuple[bytes, bytes] | None = None
        # Each call of the table is atomic, but the reader may change the table between two of them.
        # So look again until the waiter is registered.
        while (state := table.add(task_id, waiter)) == UNCLAIMED:
            # peek() removes nothing, so an exception thrown into this thread loses no result.
            kept = table.peek(task_id)
            meta = None if kept is None else self._decode_kept(task_id, kept)
            if kept is None or meta is None:
                continue
            if meta["status"] in READY_STATES:
                self.fulfiller.hand_out(task_id, (result,), meta, kept)
                return True
            progress = kept if table.drop(task_id, kept) else None
        if progress is not None and table.state(task_id) == WAITING and not table.peek(task_id):
            format, body = progress
            table.store(task_id, body, format)
        if state == DONE and (claimed := self._again(task_id)) is not None:
            self.fulfiller.hand_out(task_id, (result,), *claimed)
            return True
        return state not in GONE

    def _again(self, task_id: str) -> tuple[dict[str, Any], tuple[bytes, bytes]] | None:
        """A new copy of the meta that was handed out for ``task_id``, and its (format, body)."""
        kept = self.claimed.get(task_id)
        if kept is None:
            return None
        format, body = kept
        return self._decode(task_id.encode("utf-8", "surrogatepass"), body, format), kept

    def _weak_waiter(self, result: Any) -> weakref.ref[Any]:
        waiter = weakref.ref(result)
        # The garbage collector clears the reference before `__del__` could discard it.
        weakref.finalize(result, self.table.discard, result.id, waiter).atexit = False
        return waiter

    def discard(self, result: Any) -> None:
        """Stop ``result`` from waiting."""
        table, task_id = self.table, result.id
        if not table.discard(task_id, result) and table.state(task_id) == WAITING:
            table.discard(task_id, weakref.ref(result))

    @property
    def knows_plain_json(self) -> bool:
        """Whether JSON is accepted, and ``json`` in kombu's registry is kombu's own."""
        return means_kombu_json(self.accept)

    def check_obtainable(self, task_id: str) -> None:
        """Raise ResultDropped if waiting for ``task_id`` would never end."""
        state = self.table.state(task_id)
        if state == LOST:
            raise ResultDropped(
                f"the result of task {task_id} arrived but was dropped: unclaimed results exceeded "
                "max_unclaimed or max_unclaimed_bytes, or it was not asked for within "
                "result_expires"
            )
        if state == DONE:
            raise ResultDropped(
                f"the result of task {task_id} was handed out already, to another AsyncResult "
                "of this process, or forgotten; only the last max_claimed results are kept"
            )

    def renew(self, task_id: str) -> None:
        """Expect a new result: a task with this id is sent."""
        self.table.reset(task_id)
        self.claimed.forget(task_id)

    def forget(self, task_id: str) -> None:
        """Drop the kept body; a final state counts as handed out, so that no ``get()`` waits."""
        self.claimed.forget(task_id)
        state = self.table.state(task_id)
        if state == UNCLAIMED and self._kept_rank(task_id.encode()) > PASSING:
            self.table.finish(task_id)
        elif state not in GONE:
            self.table.forget(task_id)

    # -- what arrives ------------------------------------------------------------------------

    def deliver(
        self,
        correlation_id: bytes | None,
        body: bytes,
        format: bytes = JSON,
        queue: str = "",
    ) -> None:
        """Match one message; its content never raises.

        An unusable message becomes a FAILURE of the task that its correlation id names.

        Waits that listen to the reply queue ``queue`` are told first, even if the task has no
        waiter. With an empty name none is told.
        """
        listened = bool(queue) and self.watchers.listening
        if correlation_id and len(correlation_id) > MAX_ID:  # no task can have this id
            correlation_id = None
        try:
            if (
                not listened
                and correlation_id
                and not self.table.waiters(correlation_id)
                and self._can_wait(correlation_id, body, format)
            ):
                self._keep(correlation_id, body, format)
                if not self.table.waiters(correlation_id):
                    return
                # A waiter was added before the body was kept, and was not told of it.
            meta = self._decode(correlation_id, body, format)
        except BadMessage as exc:
            self.refuse(correlation_id, exc)
            return
        if listened and not self._is_known(meta["task_id"]):
            self.watchers.tell(owner_of(queue), meta)
        self._take_in(meta, body, format)

    def refuse(self, correlation_id: bytes | None, exc: BadMessage) -> None:
        """Make an unusable message the FAILURE of its task, for present and later waiters.

        They would otherwise wait for ever: no other message comes for that task.
        """
        self._report(correlation_id, exc)
        if correlation_id and _is_id(task_id := correlation_id.decode("utf-8", "surrogateescape")):
            self._take_in(_refusal(task_id, exc), _pack(exc), REFUSED)

    def _take_in(self, meta: dict[str, Any], body: bytes, format: bytes) -> None:
        """Hand out or keep a decoded state. The task id in its body counts."""
        task_id = meta["task_id"]
        final = meta["status"] in READY_STATES
        waiters = self.table.waiters(task_id)
        if not final or not waiters:
            self._keep(task_id.encode("utf-8", "surrogateescape"), body, format)
            waiters = self.table.waiters(task_id)
            if not final or not waiters:
                return
        self.fulfiller.hand_out(task_id, waiters, meta, (format, body))

    def _is_known(self, task_id: str) -> bool:
        """Whether a final state of ``task_id`` has already arrived."""
        state = self.table.state(task_id)
        return state == DONE or (state == UNCLAIMED and self._kept_rank(task_id.encode()) == FINAL)

    def _can_wait(self, correlation_id: bytes, body: bytes, format: bytes) -> bool:
        """Whether a body without waiters may be kept undecoded: the id is near its end."""
        return body.find(correlation_id, -len(correlation_id) - TAIL) >= 0 and (
            not format or self._is_accepted(format.partition(b"\0")[0].decode())
        )

    def handed_to(self, waiters: Iterable[Any]) -> dict[str, Any] | None:
        """The meta of the first of ``waiters`` that has become ready, or None."""
        for waiter in waiters:
            result = _result_of(waiter)
            if result is not None and result._cache:
                return dict(result._cache)
        return None

    def deliver_message(self, task_id: str, message: Any) -> None:
        """Match a kombu message, as ``deliver`` does."""
        body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
        format = body_format(message.content_type or "", message.content_encoding or "utf-8")
        self.deliver(task_id.encode("utf-8", "surrogatepass"), body, format)

    def _as_python(self, meta: dict[str, Any]) -> dict[str, Any]:
        try:
            _check_children(meta.get("children") or ())
            return self.to_python(meta)
        except Exception as exc:
            raise_if_thrown_in(exc)
            # A hostile message may make building exceptions and children fail. That is a failure of
            # its own task only.
            meta["status"], meta["result"], meta["children"] = states.FAILURE, exc, []
            return meta

    def _keep(self, task_id: bytes, body: bytes, format: bytes) -> None:
        now = time.monotonic()
        known = self.table.state(task_id) == UNCLAIMED and self._goes_back(task_id, body, format)
        if (known or self.table.store(task_id, body, format, now) < 0) and format != REFUSED:
            self.stats.duplicates += 1  # a refused one counts as a bad message

    def tidy(self, now: float) -> None:
        """Drop unclaimed results that are too old, and warn if any were dropped over a limit."""
        if self.max_age is not None and now >= self._next_expiry:
            self._next_expiry = now + max(self.max_age / 10, 0.1)
            self.table.expire(now - self.max_age)
        if self.table.evicted != self._evicted_before and now >= self._next_warning:
            self._next_warning = now + EVICTION_WARNING_INTERVAL
            self._warn_evicted()

    def _goes_back(self, task_id: bytes, body: bytes, format: bytes) -> bool:
        """Whether ``body`` ranks below the kept one.

        It is an earlier state that was sent again, or an unusable message after a usable one.

        Raises:
            BadMessage: the body is unusable.
        """
        rank = self._kept_rank(task_id)
        return rank > PASSING and _rank(self._decode(task_id, body, format), format) < rank

    def _kept_rank(self, task_id: bytes) -> int:
        kept = self.table.peek(task_id)
        if kept is None:
            return PASSING
        format, body = kept
        try:
            return _rank(self._decode(task_id, body, format), format)
        except BadMessage:
            return UNUSED  # it is reported when the result is asked for

    def _warn_evicted(self) -> None:
        table = self.table
        logger.warning(
            "%d unclaimed results were dropped, the oldest first; %d are kept "
            "(max_unclaimed=%d, max_unclaimed_bytes=%d, result_expires=%s)",
            table.evicted - self._evicted_before,
            table.unclaimed,
            table.max_unclaimed,
            table.max_unclaimed_bytes,
            self.max_age,
        )
        self._evicted_before = table.evicted

    # -- decoding ----------------------------------------------------------------------------

    def newest(self, task_id: str) -> dict[str, Any] | None:
        """The newest state that has arrived for ``task_id``, or None; it stays kept."""
        while (kept := self.table.peek(task_id)) is not None:
            meta = self._decode_kept(task_id, kept)
            if meta is not None:
                if meta["status"] in READY_STATES:
                    self._saw(task_id)
                return self._as_python(meta)
        if self.table.state(task_id) == DONE and (claimed := self._again(task_id)) is not None:
            return self._as_python(claimed[0])
        return None

    def is_kept(self, task_id: str) -> bool:
        """Whether ``newest`` would find a state."""
        return self.table.peek(task_id) is not None or (
            self.table.state(task_id) == DONE and self.claimed.get(task_id) is not None
        )

    def _saw(self, task_id: str) -> None:
        """Keep only the last ``MAX_SEEN`` results that were seen by polling."""
        seen = self._seen
        seen[task_id] = None
        if len(seen) > MAX_SEEN:
            oldest, _ = seen.popitem(last=False)
            if self.table.state(oldest) == UNCLAIMED:
                self.table.finish(oldest)

    def _decode_kept(self, task_id: str, kept: tuple[bytes, bytes]) -> dict[str, Any] | None:
        """The meta in ``kept``; None if it is not a state of ``task_id``: then peek again."""
        format, body = kept
        correlation_id = task_id.encode("utf-8", "surrogatepass")
        try:
            meta = self._decode(correlation_id, body, format)
        except BadMessage as exc:
            if self.table.drop(task_id, kept):
                self.refuse(correlation_id, exc)
            return None
        if meta["task_id"] == task_id:
            return meta
        # Its correlation id names this task, but its body names another one.
        if self.table.drop(task_id, kept):
            self.deliver(None, body, format)
        return None

    def _decode(self, correlation_id: bytes | None, body: bytes, format: bytes) -> dict[str, Any]:
        if format == REFUSED:
            assert correlation_id  # it was kept under this id
            return _refusal(correlation_id.decode("utf-8", "surrogateescape"), _unpack(body))
        if not body:
            raise BadMessage("empty body")
        content_type, content_encoding, compression = "application/json", "utf-8", ""
        if format:
            content_type, content_encoding, compression = format.decode().split("\0")
        try:
            if compression:
                if not self._is_accepted(content_type):
                    raise ContentDisallowed
                body = decompress(body, compression)
            meta = decode(body, content_type, content_encoding, self.accept)
        except ContentDisallowed:
            raise BadMessage("content type not accepted", repr(content_type[:80])) from None
        except Exception as exc:
            raise_if_thrown_in(exc)
            raise BadMessage("undecodable", type(exc).__name__) from exc
        return _checked(meta, correlation_id)

    def _is_accepted(self, content_type: str) -> bool:
        return self.accept is None or content_type in self.accept

    def _report(self, correlation_id: bytes | None, exc: BadMessage) -> None:
        self.stats.bad_messages[exc.reason] += 1
        now = time.monotonic()
        level = logging.DEBUG
        if now >= self._next_report.get(exc.reason, 0.0):
            self._next_report[exc.reason] = now + BAD_MESSAGE_WARNING_INTERVAL
            level = logging.WARNING
        shown = (correlation_id or b"none").decode("utf-8", "backslashreplace")
        if not shown.isprintable():
            shown = repr(shown)
        logger.log(level, "dropped a message on the reply queue: %s; correlation id %s", exc, shown)


#: The rank of a kept state; only a state of the same or a higher rank replaces it.
PASSING, UNUSED, FINAL = range(3)


def _rank(meta: dict[str, Any], format: bytes) -> int:
    if meta["status"] not in READY_STATES:
        return PASSING
    return UNUSED if format == REFUSED else FINAL


def _refusal(task_id: str, exc: BadMessage) -> dict[str, Any]:
    """A FAILURE for a task whose message is unusable, encoded as a worker would send it.

    So each waiter gets an exception object of its own.
    """
    cls = REFUSALS.get(exc.reason, BadMessage)
    advice = ADVICE.get(exc.reason, "something other than a Celery worker publishes to this queue")
    text = f"the result of task {task_id} arrived and cannot be used: {exc}; {advice}"
    return {
        "task_id": task_id,
        "status": states.FAILURE,
        "result": {
            "exc_type": cls.__name__,
            "exc_message": [text],
            "exc_module": cls.__module__,
        },
        "traceback": None,
        "children": [],
    }


def _pack(exc: BadMessage) -> bytes:
    return f"{exc.reason}\0{exc.detail}".encode("utf-8", "backslashreplace")


def _unpack(body: bytes) -> BadMessage:
    reason, _, detail = body.decode().partition("\0")
    return BadMessage(reason, detail)


def load_large(text: str) -> Any:
    """Decode a large JSON text, or return MISS: ``ResultMatcher.deliver`` then reports the error.

    Uses kombu's JSON, because orjson would copy the text first.
    """
    try:
        return kombu_loads(text)
    except Exception as exc:
        raise_if_thrown_in(exc)
        return MISS


def _is_plain(cls: type) -> bool:
    """Whether results of ``cls`` become ready as Celery's own AsyncResult does."""
    return issubclass(cls, AsyncResult) and all(
        getattr(cls, name) is getattr(AsyncResult, name)
        for name in ("_maybe_set_cache", "_set_cache", "_on_fulfilled")
    )


def _result_of(waiter: Any) -> Any:
    """The AsyncResult that waits; None if it was held weakly and was collected."""
    return waiter() if type(waiter) is weakref.ref else waiter


def _log_callback_error(result: Any, error: Exception) -> None:
    logger.error("a callback of the result of task %s failed", result.id, exc_info=error)


def raise_if_thrown_in(exc: BaseException) -> None:
    """If a soft time limit caused ``exc``, raise that: the message is not at fault."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, SoftTimeLimitExceeded):
            raise cause from None
        cause = cause.__context__


def _checked(meta: Any, correlation_id: bytes | None) -> dict[str, Any]:
    """Return ``meta`` if it is the meta of a result; otherwise raise BadMessage."""
    if not isinstance(meta, dict) or "result" not in meta:
        raise BadMessage("not a result")
    if not isinstance(meta.get("status"), str):
        raise BadMessage("not a result", "no status")
    if not isinstance(meta.get("task_id"), str):
        if meta.get("task_id") is not None or not correlation_id:
            raise BadMessage("not a result", "no task id")
        meta["task_id"] = correlation_id.decode("utf-8", "surrogateescape")
    elif not _is_id(meta["task_id"]):
        raise BadMessage("not a result", "no usable task id")
    return meta


def _check_children(children: Any) -> None:
    """Raise BadMessage unless Celery's ``result_from_tuple`` can make a result of each."""
    if not isinstance(children, list | tuple):
        raise BadMessage("not a result", "unusable children")
    for child in children:
        if isinstance(child, ResultBase):
            continue
        try:
            head, members = child
            task_id, parent = head if isinstance(head, list | tuple) else (head, None)
        except (TypeError, ValueError):
            task_id = parent = members = None
        if not isinstance(task_id, str) or not _is_id(task_id):
            raise BadMessage("not a result", "unusable children")
        _check_children(members or ())
        _check_children([parent] if parent else ())


def _is_id(task_id: str) -> bool:
    """Whether ``task_id`` can be a task id: 1 to 255 bytes of UTF-8."""
    try:
        return 0 < len(task_id.encode()) <= MAX_ID
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
