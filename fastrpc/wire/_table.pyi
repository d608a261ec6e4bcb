"""Header tables and content properties of AMQP 0-9-1, as py-amqp encodes and decodes them.

Bytes, values and exception types are those of ``amqp.serialization`` in py-amqp 5.4, whichever
version is installed; older versions read the integers ``b``, ``B``, ``l`` and ``s`` differently.
There are three differences, where py-amqp accepts truncated data or fails by accident:

- A length that is larger than the rest of its table raises ``TableError``. py-amqp returns a
  shorter value, reads past the table, or raises ``struct.error`` or ``IndexError``, which are not
  handled as a lost connection.
- More than 512 nested dicts and lists raise ``TableError`` when decoded and ``RecursionError`` when
  encoded. py-amqp raises ``RecursionError`` at the interpreter's limit: at a depth of about 500
  when it encodes and of 1,000 when it decodes.
- The continuation bit in the property flags raises ``TableError``; py-amqp ignores it.
"""

from collections.abc import Mapping
from typing import Any

def loads_table(data: bytes | bytearray | memoryview) -> dict[str | bytes, Any]:
    """The same as ``amqp.serialization.loads("F", data, 0)[0][0]``.

    ``data`` starts with the 4 bytes of the table's length; bytes after the table are ignored. Text
    that is not UTF-8 stays ``bytes``. A date that Python cannot represent raises ``ValueError``,
    ``OverflowError`` or ``OSError``.
    """

def dumps_table(table: Mapping[Any, Any] | None) -> bytes:
    """The same as ``amqp.serialization.dumps("F", [table])``.

    Raises ``TableError`` for a value of a type that AMQP does not have, ``struct.error`` for a
    number or a key that is too large, and ``TypeError`` for a key that is neither text nor bytes.
    """

def loads_properties(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The ``properties`` of an ``amqp.Message`` that was loaded from ``data``.

    ``data`` starts with the property flags, 12 bytes into the payload of a content header frame.
    Text that is not UTF-8 raises ``UnicodeDecodeError``.
    """

def dumps_properties(properties: Mapping[str, Any]) -> bytes:
    """The bytes that an ``amqp.Message`` with these ``properties`` writes after its body size.

    Values that are None, and names that basic content does not have, are left out.
    """
