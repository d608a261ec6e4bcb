"""When may orjson stand in for kombu's JSON?

kombu's JSON is the standard library's, with an encoder for more types and an ``object_hook`` that
reads the envelope ``{"__type__": ..., "__value__": ...}``. orjson is ten times as fast and means
the same by most values and texts, but not by all. The functions here say yes only where the two
are certain to agree, and where orjson disagrees by raising, they treat that as a no.
"""

from typing import Final

class _Miss: ...

MISS: Final[_Miss]
"""What `loads` returns for a text that is kombu's to read."""

MAX_DEPTH: Final[int]
"""The levels of containers, or of brackets, beyond which the answer is always kombu."""

def is_plain(obj: object) -> bool:
    """Does orjson encode `obj` to the same meaning as kombu, if it encodes it at all?

    Plain is what is of exactly the type dict (with keys of exactly the type str), list, tuple,
    str, int (from -2**63 to 2**64 - 1), float (finite), bool or None, in at most `MAX_DEPTH`
    levels of containers; cycles are therefore not plain. Subclasses are not: orjson and json
    treat enums, named tuples and dataclasses differently. Lone surrogates in strings are not
    looked for, because orjson raises for them.
    """

def needs_kombu(body: object) -> bool:
    """Could orjson make something else of the JSON text `body` than kombu, without an error?

    `body` is bytes, str, bytearray or memoryview; of anything else (and of nothing) kombu has to
    make what it can. True for a text that has

    - a string ``__type__``, or an escape of an ASCII letter or underscore that could spell it;
    - an integer that might leave 64 bits (orjson makes a float of it), ``-0``, or a float written
      with more than 32 characters;
    - more than `MAX_DEPTH` brackets open at once.

    Not looked for, because orjson refuses it: NaN, infinities (also ``1e400``), lone surrogates,
    invalid UTF-8, a byte order mark, control characters, and what is no JSON at all. And not
    looked for, because the two agree: duplicate keys (the last wins, at the place of the first).
    """

def dumps(obj: object) -> bytes | None:
    """`obj` encoded by orjson, or None if it is not plain or orjson refuses it.

    No other thread can change `obj` between the check and the encoding.
    """

def loads(body: object) -> object:
    """The JSON text `body` decoded by orjson, or `MISS` if `needs_kombu` or orjson refuses it.

    Raises only what asking a buffer for its length raises (a released memoryview).
    """
