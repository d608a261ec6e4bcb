"""Which result belongs to whom: bodies in, fulfilled AsyncResults out. No I/O.

A body that somebody waits for is decoded and handed to every waiter; one that nobody waits
for is kept as it came and decoded when it is asked for. Non-final states (STARTED, RETRY,
PROGRESS, custom) travel on the same queue: the newest is kept, and only a final one ends
the waiting.
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
from ..stats import Stats
from ._matcher import Claimed, Fulfiller
from ._pending import DONE, LOST, UNCLAIMED, WAITING, PendingTable
from ._wait import ReadingRole, Watchers
from .names import owner_of

__all__ = ["JSON", "ResultMatcher", "body_format"]

logger = logging.getLogger("fastrpc")

READY_STATES = states.READY_STATES

#: The format of nearly every body: JSON in UTF-8, not compressed.
JSON = b""

#: States of an id whose result arrived and is not kept.
GONE = frozenset({DONE, LOST})

#: In a body the task id stands this close to the end, with every serializer we know.
TAIL = 24

#: Results that were seen by polling (``ready()``, ``state``) are kept for a later ``get()`` by
#: another AsyncResult, this many of them; Celery's own backend keeps as many.
MAX_SEEN = 8192

#: The longest format that can be kept, and the one that stands for those that cannot.
MAX_FORMAT = 255
UNUSABLE = b"unusable content type\0binary\0"

#: The format of what is kept in place of a bad message: why it could not be used. No message has
#: it, see ``body_format``.
REFUSED = b"refused"

#: Reason of a bad message -> the exception of its task, where it is not BadMessage.
REFUSALS: dict[str, type[Exception]] = {
    "content type not accepted": ContentDisallowed,
    "undecodable": DecodeError,
    "too large": ResultTooLarge,
}

#: The same -> what can be done about it.
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

#: At most this often, in seconds, the log says that unclaimed results had to go …
EVICTION_WARNING_INTERVAL = 60.0
#: … and that a message was bad for the same reason as the last one.
BAD_MESSAGE_WARNING_INTERVAL = 1.0


def body_format(content_type: str, content_encoding: str, compression: str = "") -> bytes:
    """How a body is to be decoded, small enough to be kept beside each unclaimed one."""
    if content_type == "application/json" and content_encoding == "utf-8" and not compression:
        return JSON
    format = "\0".join((content_type, content_encoding, compression)).encode(errors="replace")
    return format if len(format) <= MAX_FORMAT and format.count(0) == 2 else UNUSABLE


class ResultMatcher:
    """Matches the bodies that arrive with the results that wait.

    Args:
        table: Correlation id -> waiters, or the undecoded body.
        watchers: Who is told when a result is ready.
        role: The reader's; only callbacks of results may read in between.
        accept: Content types that may be decoded (``result_accept_content``).
        to_python: Celery's ``Backend.meta_from_decoded``.
        stats: Counters to keep.
        max_age: Seconds after which an unclaimed body is dropped; None keeps it.
        max_claimed: How many results that were handed out are kept, to be had again.
        max_claimed_bytes: How many bytes of these.
    """

    def __init__(
        self,
        table: PendingTable,
        watchers: Watchers,
        role: ReadingRole,
        *,
        accept: frozenset[str] | None,
        to_python: Callable[[dict[str, Any]], dict[str, Any]],
        stats: Stats,
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
        #: What was handed out last.
        self.claimed = Claimed(max_claimed, max_claimed_bytes)
        #: Makes AsyncResults ready and tells those who watch them.
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
        """Let ``result`` (an AsyncResult) wait; at once fulfilled if its body is here.

        Returns:
            False where it would wait for ever, see ``check_obtainable``.
        """
        if result._cache:
            return True
        table, task_id = self.table, result.id
        waiter = self._weak_waiter(result) if weak else result
        progress: tuple[bytes, bytes] | None = None
        # Each call of the table is atomic, but the reader may come in between two of them:
        # until the waiter is registered, what is there is looked at again.
        while (state := table.add(task_id, waiter)) == UNCLAIMED:
            # Only looked at: an exception thrown into this thread must not lose a result.
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
        """The meta that was handed out for ``task_id``, anew, and what it was decoded from."""
        kept = self.claimed.get(task_id)
        if kept is None:
            return None
        format, body = kept
        return self._decode(task_id.encode("utf-8", "surrogatepass"), body, format), kept

    def _weak_waiter(self, result: Any) -> weakref.ref[Any]:
        waiter = weakref.ref(result)
        # The collector clears the reference before `__del__` could take it out.
        weakref.finalize(result, self.table.discard, result.id, waiter).atexit = False
        return waiter

    def discard(self, result: Any) -> None:
        """``result`` waits no longer."""
        table, task_id = self.table, result.id
        if not table.discard(task_id, result) and table.state(task_id) == WAITING:
            table.discard(task_id, weakref.ref(result))

    @property
    def knows_plain_json(self) -> bool:
        """Whether JSON is accepted, and decoded by kombu's own meaning of it."""
        return means_kombu_json(self.accept)

    def check_obtainable(self, task_id: str) -> None:
        """Raise ResultDropped if waiting for ``task_id`` would never end."""
        state = self.table.state(task_id)
        if state == LOST:
            raise ResultDropped(
                f"the result of task {task_id} arrived but was dropped: more than max_unclaimed "
                "or max_unclaimed_bytes of results were not asked for, or it was not asked for "
                "within result_expires"
            )
        if state == DONE:
            raise ResultDropped(
                f"the result of task {task_id} was handed out already, to another AsyncResult "
                "of this process, or forgotten; only the last max_claimed results can be had again"
            )

    def renew(self, task_id: str) -> None:
        """A task with this id is sent: its result is a new one."""
        self.table.reset(task_id)
        self.claimed.forget(task_id)

    def forget(self, task_id: str) -> None:
        """Drop what is kept; a final state counts as handed out, so nobody waits for it."""
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
        """Take in one message; never raises for what is in it.

        One that cannot be used is a FAILURE of the task in its correlation id.

        Who listens to the reply queue ``queue`` is told of it first, also where nobody waits for
        the task; without a name nobody is.
        """
        listened = bool(queue) and self.watchers.listening
        if correlation_id and len(correlation_id) > MAX_ID:  # nobody can wait for it
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
                # Somebody began to wait for it before it was kept, and was not told.
            meta = self._decode(correlation_id, body, format)
        except BadMessage as exc:
            self.refuse(correlation_id, exc)
            return
        if listened and not self._is_known(meta["task_id"]):
            self.watchers.tell(owner_of(queue), meta)
        self._take_in(meta, body, format)

    def refuse(self, correlation_id: bytes | None, exc: BadMessage) -> None:
        """A message came that cannot be used: whoever waits for it, or asks later, learns why.

        Waiting on would be for ever: no other message comes for that task.
        """
        self._report(correlation_id, exc)
        if correlation_id and _is_id(task_id := correlation_id.decode("utf-8", "surrogateescape")):
            self._take_in(_refusal(task_id, exc), _pack(exc), REFUSED)

    def _take_in(self, meta: dict[str, Any], body: bytes, format: bytes) -> None:
        """Hand out or keep a state whose body, which decides whose it is, was decoded."""
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
        """Whether the final state of ``task_id`` came before."""
        state = self.table.state(task_id)
        return state == DONE or (state == UNCLAIMED and self._kept_rank(task_id.encode()) == FINAL)

    def _can_wait(self, correlation_id: bytes, body: bytes, format: bytes) -> bool:
        """Whether a body nobody waits for may be kept undecoded: it ends with the id it has."""
        return body.find(correlation_id, -len(correlation_id) - TAIL) >= 0 and (
            not format or self._is_accepted(format.partition(b"\0")[0].decode())
        )

    def handed_to(self, waiters: Iterable[Any]) -> dict[str, Any] | None:
        """The meta of the first of ``waiters`` that has become ready."""
        for waiter in waiters:
            result = _result_of(waiter)
            if result is not None and result._cache:
                return dict(result._cache)
        return None

    def deliver_message(self, task_id: str, message: Any) -> None:
        """The same for a kombu message."""
        body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
        format = body_format(message.content_type or "", message.content_encoding or "utf-8")
        self.deliver(task_id.encode("utf-8", "surrogatepass"), body, format)

    def _as_python(self, meta: dict[str, Any]) -> dict[str, Any]:
        try:
            _check_children(meta.get("children") or ())
            return self.to_python(meta)
        except Exception as exc:
            raise_if_thrown_in(exc)
            # The message is not to be trusted with building exceptions and children: whoever
            # waits for the task learns why, and nobody else notices.
            meta["status"], meta["result"], meta["children"] = states.FAILURE, exc, []
            return meta

    def _keep(self, task_id: bytes, body: bytes, format: bytes) -> None:
        now = time.monotonic()
        known = self.table.state(task_id) == UNCLAIMED and self._goes_back(task_id, body, format)
        if (known or self.table.store(task_id, body, format, now) < 0) and format != REFUSED:
            self.stats.duplicates += 1  # a refused one counts as a bad message

    def tidy(self, now: float) -> None:
        """Drop unclaimed results that are too old, say so where too many had to go."""
        if self.max_age is not None and now >= self._next_expiry:
            self._next_expiry = now + max(self.max_age / 10, 0.1)
            self.table.expire(now - self.max_age)
        if self.table.evicted != self._evicted_before and now >= self._next_warning:
            self._next_warning = now + EVICTION_WARNING_INTERVAL
            self._warn_evicted()

    def _goes_back(self, task_id: bytes, body: bytes, format: bytes) -> bool:
        """Whether ``body`` says less than what is kept.

        An earlier state that was sent again, or what cannot be used after what can.

        Raises:
            BadMessage: it cannot be used.
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
            return UNUSED  # found out and reported when it is asked for

    def _warn_evicted(self) -> None:
        table = self.table
        logger.warning(
            "%d results nobody had asked for were dropped, the oldest first; %d are kept "
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
        """The newest state that arrived for ``task_id``, or None; it stays kept for a while."""
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
        """Keep no more than the last few results that were seen by polling only."""
        seen = self._seen
        seen[task_id] = None
        if len(seen) > MAX_SEEN:
            oldest, _ = seen.popitem(last=False)
            if self.table.state(oldest) == UNCLAIMED:
                self.table.finish(oldest)

    def _decode_kept(self, task_id: str, kept: tuple[bytes, bytes]) -> dict[str, Any] | None:
        """The meta that is kept for ``task_id``; None where that is another by now: look again."""
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
        # It arrived under the correlation id of this task, but says it is another's.
        if self.table.drop(task_id, kept):
            self.deliver(None, body, format)
        return None

    def _decode(self, correlation_id: bytes | None, body: bytes, format: bytes) -> dict[str, Any]:
        if format == REFUSED:
            assert correlation_id  # it is kept under it
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


#: How much what is kept says; a state is replaced only by one that says as much, or more.
PASSING, UNUSED, FINAL = range(3)


def _rank(meta: dict[str, Any], format: bytes) -> int:
    if meta["status"] not in READY_STATES:
        return PASSING
    return UNUSED if format == REFUSED else FINAL


def _refusal(task_id: str, exc: BadMessage) -> dict[str, Any]:
    """The meta of a task whose message could not be used, as a worker would send it.

    So each who waits gets an exception of their own.
    """
    cls = REFUSALS.get(exc.reason, BadMessage)
    advice = ADVICE.get(exc.reason, "something that is no Celery worker publishes to this queue")
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
    """What is in a large JSON text, or MISS: ``ResultMatcher.deliver`` says what is wrong with it.

    By kombu: orjson would copy the text first.
    """
    try:
        return kombu_loads(text)
    except Exception as exc:
        raise_if_thrown_in(exc)
        return MISS


def _is_plain(cls: type) -> bool:
    """Whether results of ``cls`` become ready the way Celery's own AsyncResult does."""
    return issubclass(cls, AsyncResult) and all(
        getattr(cls, name) is getattr(AsyncResult, name)
        for name in ("_maybe_set_cache", "_set_cache", "_on_fulfilled")
    )


def _result_of(waiter: Any) -> Any:
    """The AsyncResult that waits; None if it was held weakly and went."""
    return waiter() if type(waiter) is weakref.ref else waiter


def _log_callback_error(result: Any, error: Exception) -> None:
    logger.error("a callback of the result of task %s failed", result.id, exc_info=error)


def raise_if_thrown_in(exc: BaseException) -> None:
    """Raise the soft time limit that caused ``exc``, if one did: the message is not at fault."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, SoftTimeLimitExceeded):
            raise cause from None
        cause = cause.__context__


def _checked(meta: Any, correlation_id: bytes | None) -> dict[str, Any]:
    """``meta`` if it is the meta of a result, else BadMessage."""
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
    """Whether anybody could wait for it."""
    try:
        return 0 < len(task_id.encode()) <= MAX_ID
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
