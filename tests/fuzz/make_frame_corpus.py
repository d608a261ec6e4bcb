"""Writes the seed corpus of fuzz_frame.c into corpus/frame.

    python -m tests.fuzz.make_frame_corpus

One file for each thing the reader distinguishes. A crash that was found is added by hand, under a
name that says what it was, and gets a test in ``tests/c/test_frame.c``.
"""

from __future__ import annotations

from pathlib import Path
from struct import pack

from tests.support.amqp_bytes import frame, shortstr

HOW = b"\x03"  # frame_max 4096, some cuts


def deliver(channel: int = 1) -> bytes:
    args = shortstr(b"ctag") + pack(">QB", 7, 0) + shortstr(b"ex") + shortstr(b"key")
    return frame(1, channel, pack(">HH", 60, 60) + args)


def header(size: int, flags: int, properties: bytes, channel: int = 1, class_id: int = 60) -> bytes:
    return frame(2, channel, pack(">HHQH", class_id, 0, size, flags) + properties)


PLAIN = shortstr(b"application/json") + shortstr(b"utf-8") + pack(">I", 0) + b"\x02\x00"
RPC = PLAIN + shortstr(b"6d3c7a52-7c0e-4d2b-9a52-0d5b1a7c1f10")
ALL = (
    shortstr(b"t")
    + shortstr(b"e")
    + pack(">I", 3)
    + b"\x01kV\x02\x09"
    + b"".join(shortstr(s) for s in (b"id", b"reply", b"expire", b"message"))
    + pack(">Q", 1)
    + b"".join(shortstr(s) for s in (b"type", b"user", b"app", b"cluster"))
)

SEEDS = {
    "delivery": deliver() + header(5, 0xFC00, RPC) + frame(3, 1, b"hello"),
    "no-body": deliver() + header(0, 0, b""),
    "all-properties": deliver() + header(2, 0xFFFC, ALL) + frame(3, 1, b"ok"),
    "pieces": deliver()
    + header(6, 0, b"")
    + b"".join(frame(3, 1, part) for part in (b"ab", b"", b"cde", b"f")),
    "large": deliver()
    + header(9000, 0, b"")
    + frame(3, 1, b"x" * 4088)
    + frame(3, 1, b"y" * 4088)
    + frame(3, 1, b"z" * 824),
    "interleaved": deliver(1)
    + frame(8, 0, b"")
    + deliver(2)
    + header(2, 0, b"", 2)
    + header(1, 0, b"", 1)
    + frame(3, 2, b"a")
    + frame(3, 1, b"b")
    + frame(3, 2, b"c"),
    "raw": frame(8, 0, b"")
    + frame(1, 0, pack(">HH", 10, 10))
    + frame(1, 1, pack(">HH", 60, 50) + b"..")
    + header(3, 0, b"")
    + frame(3, 1, b"abc"),
    "many": (deliver() + header(5, 0xFC00, RPC) + frame(3, 1, b"hello")) * 4,
    "wrong-type": frame(4, 0, b""),
    "wrong-end": frame(8, 0, b"")[:-1] + b"\x00",
    "wrong-size": pack(">BHI", 1, 1, 0xFFFFFFFF),
    "wrong-class": deliver() + header(0, 0, b"", class_id=50),
    "continuation-bit": deliver() + header(0, 1, b"\x00\x00"),
    "cut-properties": deliver() + header(0, 0xFFFC, ALL[:-1]),
    "method-short": frame(1, 1, b"\x00\x3c\x00"),
    "header-short": deliver() + frame(2, 1, b"\x00" * 11),
    "body-long": deliver() + header(2, 0, b"") + frame(3, 1, b"abc"),
    "body-claimed": deliver() + header(2**64 - 1, 0, b""),
    "body-for-header": deliver() + frame(3, 1, b"a"),
    "header-twice": deliver() + header(2, 0, b"") + header(2, 0, b""),
    "method-inside": deliver() + deliver(),
    "protocol-header": b"AMQP\x00\x00\x09\x01",
}


def main() -> None:
    corpus = Path(__file__).parent / "corpus" / "frame"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, wire in SEEDS.items():
        (corpus / name).write_bytes(HOW + wire)


if __name__ == "__main__":
    main()
