"""Header tables and content properties of AMQP 0-9-1, as py-amqp encodes and decodes them.

The same bytes, the same values and the same exception types as ``amqp.serialization`` of py-amqp
5.4, whatever is installed; older ones read the integers ``b``, ``B``, ``l`` and ``s`` otherwise.
It differs where that would go on with less than what was announced, or fail by accident:

- A length that is larger than what is left of its table raises ``TableError``. py-amqp returns a
  shorter value, reads on behind the table, or raises ``struct.error`` or ``IndexError``, which
  nobody takes for a lost connection.
- More than 512 dicts and lists inside each other raise ``TableError`` when decoded and
  ``RecursionError`` when encoded. py-amqp raises ``RecursionError`` at the interpreter's limit:
  at a depth of about 500 when it encodes and of 1,000 when it decodes.
- The continuation bit in the property flags raises ``TableError``; py-amqp reads on as if it was
  not set.
"""

from collections.abc import Mapping
from typing import Any

def loads_table(data: bytes | bytearray | memoryview) -> dict[str | bytes, Any]:
    """What ``amqp.serialization.loads("F", data, 0)[0][0]`` returns.

    ``data`` starts with the 4 bytes of the table's length; what follows the table is ignored. Text
    that is no UTF-8 stays ``bytes``. A date that Python does not have raises ``ValueError``,
    ``OverflowError`` or ``OSError``.
    """

def dumps_table(table: Mapping[Any, Any] | None) -> bytes:
    """What ``amqp.serialization.dumps("F", [table])`` returns.

    A value of a type that AMQP does not have raises ``TableError``; a number or a key that is too
    large ``struct.error``; a key that is neither text nor bytes ``TypeError``.
    """

def loads_properties(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The ``properties`` of an ``amqp.Message`` that has loaded ``data``: basic content's.

    ``data`` starts with the property flags, 12 bytes into a content header frame. Text that is no
    UTF-8 raises ``UnicodeDecodeError``.
    """

def dumps_properties(properties: Mapping[str, Any]) -> bytes:
    """What an ``amqp.Message`` with these ``properties`` writes behind the size of its body.

    Values that are None, and names that basic content does not have, are left out.
    """
