"""Calls the task and waits for its result."""

from proj import add

print(add.delay(2, 3).get(timeout=10))
