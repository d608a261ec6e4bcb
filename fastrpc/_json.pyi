"""Decides when orjson may stand in for kombu's JSON.

kombu's JSON is the standard library's, with an encoder for more types and an ``object_hook`` that
reads the envelope ``{"__type__": ..., "__value__": ...}``. orjson is ten times as fast, and agrees
with it for most values and texts, but not for all. The functions here allow orjson only where the
two certainly agree. If orjson raises, that counts as a disagreement.
"""

from typing import Final

class _Miss: ...

MISS: Final[_Miss]
"""What `loads` returns for a text that kombu must decode."""

MAX_DEPTH: Final[int]
"""Values or texts with more levels of containers than this are always left to kombu."""

def is_plain(obj: object) -> bool:
    """Whether orjson encodes `obj` to the same meaning as kombu, if it encodes it at all.

    Plain values have exactly one of these types: dict (with keys of exactly the type str), list,
    tuple, str, int (from -2**63 to 2**64 - 1), float (finite), bool or None, with at most
    `MAX_DEPTH` levels of containers; so cycles are not plain. Subclasses are not plain: orjson and
    json treat enums, named tuples and dataclasses differently. Strings are not searched for lone
    surrogates, because orjson raises for them.
    """

def needs_kombu(body: object) -> bool:
    """Whether orjson could decode `body` to another value than kombu, without an error.

    `body` is bytes, str, bytearray or memoryview. Anything else, and an empty body, needs kombu.
    So does a text that has

    - a string ``__type__``, or an escape of an ASCII letter or underscore that could spell it;
    - an integer that might not fit 64 bits (orjson makes a float of it), ``-0``, or a float written
      with more than 32 characters;
    - more than `MAX_DEPTH` open brackets.

    Some texts are not searched for, because orjson refuses them: NaN, infinities (also ``1e400``),
    lone surrogates, invalid UTF-8, a byte order mark, control characters, and anything that is not
    JSON. Duplicate keys are not searched for, because the two agree (the last value wins, at the
    place of the first).
    """

def dumps(obj: object) -> bytes | None:
    """`obj` encoded by orjson, or None if it is not plain or orjson refuses it.

    No other thread can change `obj` between the check and the encoding.
    """

def loads(body: object) -> object:
    """The JSON text `body` decoded by orjson, or `MISS` if `needs_kombu` or orjson refuses it.

    Raises only if `body` is a released memoryview.
    """
