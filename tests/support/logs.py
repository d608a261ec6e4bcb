"""Recording log lines."""

from __future__ import annotations

import logging


class Records(logging.Handler):
    """All log records of all loggers."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def text(self) -> str:
        formatter = logging.Formatter()
        return "\n".join(formatter.format(record) for record in self.records)

    def count(self, words: str) -> int:
        return sum(words in record.getMessage() for record in self.records)
