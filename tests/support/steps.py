"""Repeats a call and runs an action at one of its steps: at each step in turn.

At a step the interpreter checks for a signal to handle, an exception that another thread has set,
or (from Python 3.12 on) garbage to collect. Steps are at the start of a function, after each call,
and at the jump back of a loop. Compiled code has no steps.
"""

from __future__ import annotations

import dis
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FrameType
from typing import Any

__all__ = ["each_step"]

#: After these instructions the interpreter checks.
CHECKED = frozenset(
    {"RESUME", "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD"}
    | {"CALL_FUNCTION", "CALL_FUNCTION_KW", "CALL_METHOD", "JUMP_ABSOLUTE"}  # Python 3.10
)

#: Python 3.13 (seen with 3.13.0) does not trace the opcodes of a function at its first call, nor at
#: the first call after one that the trace function interrupted.
TRACES_LATE = sys.version_info[:2] == (3, 13)


@cache
def _opcodes(code: CodeType) -> dict[int, str]:
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


class _Step:
    """Calls `act` at step number `number` of the calls made in `files` by the current thread."""

    def __init__(self, number: int, act: Callable[[], Any], files: tuple[str, ...]) -> None:
        self.left = number
        self.act = act
        self.files = files
        #: The place of the step, once `act` was called.
        self.where: str | None = None

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not any(part in frame.f_code.co_filename for part in self.files):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        names = _opcodes(frame.f_code)
        previous = "RESUME"

        def step(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal previous
            if event == "opcode":
                before, previous = previous, names.get(frame.f_lasti, "")
                if before in CHECKED and self.where is None:
                    self._pass(frame)
            elif event == "exception":  # it does not look on the way to the handler
                previous = ""
            return step

        return step

    def _pass(self, frame: FrameType) -> None:
        self.left -= 1
        if self.left < 0:
            code = frame.f_code
            self.where = f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}"
            self.act()


def each_step(
    prepare: Callable[[], Any],
    call: Callable[[Any], Any],
    act: Callable[[], Any],
    files: tuple[str, ...],
) -> Iterator[tuple[str, Any, BaseException | None]]:
    """Run `call(prepare())` repeatedly, with `act` at the first step of `call`, the second, …

    Only the steps in `files` (parts of paths) count. Yields the place of the step, what `prepare`
    returned and what `call` raised.
    """
    for number in itertools.count():
        if TRACES_LATE:
            _run(_Step(sys.maxsize, act, files), call, prepare())
        prepared = prepare()
        step = _Step(number, act, files)
        error = _run(step, call, prepared)
        if step.where is None:
            assert number, "there is no step at all"
            return
        yield step.where, prepared, error


def _run(step: _Step, call: Callable[[Any], Any], prepared: Any) -> BaseException | None:
    usual = sys.gettrace()
    # Python 3.12 traces opcodes only if some frame has asked for it before.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(step.trace)
    try:
        call(prepared)
    except BaseException as exc:
        return exc
    finally:
        sys.settrace(usual)
    return None
