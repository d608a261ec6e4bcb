"""fastrpc.sending._window: confirms from the bytes of a broker, and what is left unconfirmed."""

from __future__ import annotations

from itertools import count
from struct import pack
from time import monotonic
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrpc.errors import ProtocolError
from fastrpc.sending._window import ConfirmWindow
from fastrpc.stats import SentStats
from fastrpc.wire._reader import FRAME, NEED_MORE, FrameReader
from tests.support.amqp_bytes import QOS_OK, frame

HEARTBEAT = frame(8, 0)


def ack(tag: int, multiple: bool = False) -> bytes:
    return frame(1, 1, pack(">HHQB", 60, 80, tag, multiple))


def nack(tag: int, multiple: bool = False, requeue: bool = False) -> bytes:
    return frame(1, 1, pack(">HHQB", 60, 120, tag, multiple | requeue << 1))


def message(size: int) -> SimpleNamespace:
    return SimpleNamespace(body=b"x" * size)


def window_of(*sizes: int) -> ConfirmWindow:
    """A window with messages of those sizes, under the tags 1, 2, …"""
    window = ConfirmWindow()
    for tag, size in enumerate(sizes, 1):
        window.add(tag, message(size))
    return window


def sizes(messages) -> list[int]:
    return [len(message.body) for message in messages]


def refused(window: ConfirmWindow) -> list[tuple[int, int]]:
    """(how often it was refused, size) of each refused message."""
    return [(refusals, len(message.body)) for _, refusals, message in window.refused]


def read(window: ConfirmWindow, data: bytes) -> int:
    reader = FrameReader()
    reader.feed(data)
    return window.read(reader)


def test_messages_are_kept_in_the_order_of_their_tags():
    window = window_of(3, 1, 2)
    assert (len(window), window.bytes, sizes(window)) == (3, 6, [3, 1, 2])


def test_a_confirm_of_one_message():
    window = window_of(3, 1, 2)
    assert read(window, ack(2)) == NEED_MORE
    assert (window.bytes, window.confirmed, sizes(window)) == (5, 1, [3, 2])


def test_a_confirm_with_multiple_is_for_all_messages_up_to_its_tag():
    window = window_of(3, 1, 2)
    read(window, ack(2, multiple=True))
    assert (window.bytes, window.confirmed, sizes(window)) == (2, 2, [2])


@pytest.mark.parametrize("requeue", [False, True])
def test_a_refused_message_is_kept_to_be_sent_again(requeue):
    window = window_of(3, 1, 2)
    read(window, nack(2, multiple=True, requeue=requeue))
    assert (window.bytes, window.refused_bytes, window.confirmed) == (2, 4, 0)
    assert (sizes(window), refused(window)) == ([2], [(1, 3), (1, 1)])
    assert (len(window), window.in_flight, window.refused_count) == (3, 1, 2)


def test_refused_messages_take_no_room():
    window = window_of(3, 1)
    assert not window.has_room(2, 100, 1)
    assert not window.has_room(100, 4, 1)
    read(window, nack(1))
    assert window.has_room(2, 2, 1)
    window.add(3, window.refused[0][2])
    assert (len(window), window.in_flight, sizes(window)) == (2, 2, [1])
    assert (window.bytes, window.refused_bytes, window.refused_count) == (1, 3, 1)
    assert window.has_room(2, 2, 1)


def test_there_is_no_room_while_a_message_is_to_be_sent_again():
    window = window_of()
    assert window.has_room(100, 100, 1)
    window.append(SimpleNamespace(body=b"x", correlation_id="x"))
    assert not window.has_room(100, 100, 1)


def test_the_refusals_of_a_message_are_counted_until_its_confirm():
    window = window_of(3)
    for tag in (1, 2, 3):
        read(window, nack(tag))
        assert refused(window) == [(tag, 3)]
        assert 0 <= monotonic() - window.refused[0][0] < 10
        window.add(tag + 1, window.refused[0][2])
        assert refused(window) == []
    read(window, ack(4))
    assert (len(window), window.bytes, window.refused_bytes, window.confirmed) == (0, 0, 0, 1)


def test_a_refused_message_is_given_up():
    window = window_of(3, 1)
    read(window, nack(2, multiple=True))
    refusals, given_up = window.give_up()
    assert (refusals, len(given_up.body)) == (1, 3)
    assert (len(window), window.refused_bytes, refused(window)) == (1, 1, [(1, 1)])


@pytest.mark.parametrize("tag", [0, 1, 4, 2**64 - 1])
def test_a_confirm_of_an_unknown_tag_changes_nothing(tag):
    window = window_of(3, 1, 2)
    read(window, ack(1) + ack(tag) + nack(tag))
    assert (window.bytes, window.confirmed, sizes(window)) == (3, 1, [1, 2])


def test_the_largest_tag_with_multiple_confirms_all():
    window = window_of(3, 1, 2)
    read(window, ack(2**64 - 1, multiple=True))
    assert (len(window), window.bytes) == (0, 0)


def test_messages_of_a_lost_link_come_before_those_that_wait_already():
    window = window_of(3, 1, 2)
    window.append(message(9))
    read(window, nack(2))
    window.add(4, window.refused[0][2])
    read(window, nack(1))
    window.lose()
    assert (sizes(window.again), refused(window)) == ([2, 9], [(1, 1), (1, 3)])
    assert window.refused[0][0] == 0.0
    assert (len(window), window.in_flight) == (4, 0)
    assert (window.bytes, window.refused_bytes) == (11, 4)
    window.add(1, window.again[0])  # the tags of the next connection begin anew
    window.add(2, window.refused[0][2])
    assert (sizes(window), sizes(window.again), refused(window)) == ([2], [9], [(1, 3)])
    read(window, ack(2, multiple=True))
    assert (len(window), window.bytes, window.refused_bytes, window.confirmed) == (2, 9, 3, 2)


def test_a_message_that_is_to_be_sent_again_is_replaced():
    window = window_of(3, 1, 2)
    window.lose()
    window.replace(window.again[1], message(7))
    assert (sizes(window.again), window.bytes) == ([3, 7, 2], 12)
    window.replace(window.again[1], None)
    assert (sizes(window.again), window.bytes) == ([3, 2], 5)


def test_forgetting_a_message_that_will_not_be_confirmed():
    window = ConfirmWindow()
    window.append(message(3))
    window.forget(message(9), 9)
    assert (len(window), window.bytes) == (1, 3)
    window.forget(window.again[0], 3)
    assert (len(window), window.bytes) == (0, 0)


def forget(window: ConfirmWindow, *sizes: int) -> list[bool]:
    """Whether to ask, after each of the messages."""
    return [window.forget(message(0), size) for size in sizes]


def test_without_confirms_the_broker_is_asked_now_and_then():
    window = ConfirmWindow()
    assert forget(window, *[1_000] * 200).count(True) == 3
    assert (window.in_flight, window.ahead, len(window)) == (3, 198_000, 0)
    assert forget(window, 1_000_000, 1) == [True, False]


def test_its_answers_make_room():
    window = ConfirmWindow()
    assert forget(window, 70_000, 80_000, 1) == [True, True, False]
    assert not window.has_room(1, 1, 150_000)
    assert window.has_room(1, 1, 150_001)
    assert read(window, QOS_OK) == NEED_MORE
    assert window.has_room(1, 1, 80_001)
    read(window, QOS_OK)
    assert (window.in_flight, window.ahead, window.confirmed) == (0, 0, 0)
    assert read(window, QOS_OK) == FRAME, "not an answer to a question"


def test_with_the_link_its_questions_are_lost():
    window = ConfirmWindow()
    forget(window, 70_000, 50_000)
    window.lose()
    assert (window.in_flight, window.ahead) == (0, 0)
    assert forget(window, 50_000, 50_000) == [False, True]
    assert window.ahead == 100_000


def test_confirms_are_counted_once():
    window, stats = window_of(3, 1, 2), SentStats()
    read(window, ack(2, multiple=True))
    window.count_into(stats)
    window.count_into(stats)
    assert (stats.confirmed, window.confirmed) == (2, 0)


@pytest.mark.parametrize(
    "other",
    [
        HEARTBEAT,
        frame(1, 1, pack(">HH", 10, 60)),  # connection.blocked, without its reason
        frame(1, 1, pack(">HHQ", 60, 80, 1)),  # an ack without its bits
        frame(1, 1, pack(">HHQB", 61, 80, 1, 0)),
        frame(1, 1, pack(">HHQB", 60, 81, 1, 0)),
        frame(3, 1, pack(">HHQB", 60, 80, 1, 0)),
    ],
    ids=["heartbeat", "method", "short", "other class", "other method", "body"],
)
def test_other_events_are_left_to_the_caller(other):
    window, reader = window_of(3, 1), FrameReader()
    reader.feed(ack(1) + other + ack(2))
    assert window.read(reader) == FRAME
    assert (window.confirmed, reader.payload) == (1, other[7:-1])
    assert window.read(reader) == NEED_MORE
    assert window.confirmed == 2


def test_bytes_that_are_not_a_frame_are_an_error():
    window = window_of(3, 1)
    with pytest.raises(ProtocolError):
        read(window, ack(1) + b"\xff" * 20)
    assert window.confirmed == 1


confirms = st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), max_size=12)


@given(confirms, st.data())
def test_the_window_equals_a_dict_wherever_the_bytes_are_cut(confirms, data):
    window, plain, nacked = window_of(*range(10)), dict(zip(count(1), range(10))), []
    frames = b""
    for tag, multiple, taken in confirms:
        frames += ack(tag, multiple) if taken else nack(tag, multiple)
        for sent in [t for t in plain if t == tag or (multiple and t < tag)]:
            size = plain.pop(sent)
            if not taken:
                nacked.append(size)
    cut = data.draw(st.integers(0, len(frames)))
    reader = FrameReader()
    for part in (frames[:cut], frames[cut:]):
        reader.feed(part)
        assert window.read(reader) == NEED_MORE
    assert sizes(window) == list(plain.values())
    assert [size for _, size in refused(window)] == nacked
    assert window.confirmed == 10 - len(plain) - len(nacked)
    assert window.refused_bytes == sum(nacked)
    assert window.bytes == sum(plain.values())


def test_the_only_message_in_flight_is_dropped():
    window = ConfirmWindow()
    first, second = message(1), message(2)
    window.add(1, first)
    assert window.drop_only() is first
    assert (len(window), window.bytes) == (0, 0)
    window.add(2, second)
    window.confirm(2, multiple=False, taken=False)
    window.add(3, second)
    assert window.drop_only() is second
    assert (len(window), window.bytes, window.refused_bytes, window.refused_count) == (0, 0, 0, 0)
