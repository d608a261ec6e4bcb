"""The parts of a chord: how many there are to be, and what was read from the chord's queue."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from celery import states
from celery.exceptions import ChordError
from celery.result import GroupResult

from ..serialization import decode

__all__ = ["Parts", "flat", "leaves"]


def leaves(results: Iterable[Any]) -> list[Any]:
    """The ids in ``results``; those of a group as a nested list."""
    return [
        leaves(result.results) if isinstance(result, GroupResult) else result.id
        for result in results
    ]


def flat(tree: list[Any]) -> list[str]:
    """The ids in ``tree``, on all levels, in one list."""
    return [id for node in tree for id in (flat(node) if isinstance(node, list) else [node])]


class Parts:
    """What was in the queue of a chord.

    Args:
        size: The number of expected parts, unless a message in the queue gives another one.
        messages: py-amqp messages.
        backend: Decodes results, and rebuilds exceptions.
    """

    def __init__(self, size: int, messages: list[Any], backend: Any) -> None:
        self.backend = backend
        self.size = size
        #: How many messages were read.
        self.read = len(messages)
        #: The ids in the order and nesting in which the body gets the results.
        self.shape: list[Any] | None = None
        #: Parts that were dropped because their task had sent one before.
        self.doubles = 0
        self._parts: dict[str, tuple[float, str, Any]] = {}
        self._added: set[str] = set()
        for message in messages:
            self._take_in(message)

    def _take_in(self, message: Any) -> None:
        properties = message.properties
        task_id = properties.get("correlation_id", "")
        try:
            content = decode(
                message.body,
                properties.get("content_type"),
                properties.get("content_encoding"),
                self.backend.accept,
            )
            if "added" in content:
                self._added.add(task_id)
                return
            if "size" in content:
                self.size = content["size"]
                self.shape = content.get("shape", self.shape)
                return
            index = content["index"]
            part = (math.inf if index is None else index, content["status"], content["result"])
        except Exception as exc:  # whatever a decoder raises: the part has failed
            part = (math.inf, states.FAILURE, exc)
        if task_id in self._parts:
            self.doubles += 1
        else:
            self._parts[task_id] = part

    @property
    def whole(self) -> bool:
        """Whether no part is missing."""
        return len(self._parts) >= self.size + len(self._added)

    def values(self) -> list[Any]:
        """The results in the order of the header.

        Raises:
            ChordError: a part has failed, or a task of the header has sent none.
        """
        if self.shape is not None:
            try:
                return self._nested(self.shape)
            except Exception as exc:
                raise ChordError(f"Join error: {exc!r}") from exc
        in_order = sorted(self._parts.items(), key=lambda item: item[1][0])
        return [self._value(task_id, raw=False) for task_id, _ in in_order]

    def _nested(self, shape: list[Any]) -> list[Any]:
        return [
            self._nested(node) if isinstance(node, list) else self._value(node, raw=True)
            for node in shape
        ]

    def _value(self, task_id: str, raw: bool) -> Any:
        _, state, value = self._parts[task_id]
        if state in states.EXCEPTION_STATES:
            value = self.backend.exception_to_python(value)
        if state in states.PROPAGATE_STATES:
            if raw:
                raise value
            raise ChordError(f"Dependency {task_id} raised {value!r}") from value
        return value
