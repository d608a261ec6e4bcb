"""fastrpc.transport.dial without a server: deadlines, failover, and what errors mean."""

from __future__ import annotations

from ssl import SSLCertVerificationError

import pytest
from amqp.exceptions import AccessRefused, NotAllowed, NotFound
from kombu import Connection
from kombu.exceptions import OperationalError

from fastrpc.transport import dial
from fastrpc.transport.dial import connect, errors_of, failure, is_refusal


class Broker:
    """A kombu connection to several URLs, of which only the last may answer."""

    def __init__(self, monkeypatch, urls: int, answers: bool = True, takes: float = 0.0) -> None:
        self.alt = [f"amqp://node{n}" for n in range(urls)] if urls > 1 else []
        self.connect_timeout = 4.0
        self.answers = answers
        self.takes = takes
        self.left = urls
        #: The timeout of each attempt.
        self.timeouts: list[float] = []
        self.now = 1000.0
        monkeypatch.setattr(dial, "time", self)

    def monotonic(self) -> float:
        return self.now

    def ensure_connection(self, max_retries: int) -> None:
        assert max_retries == 0
        self.timeouts.append(self.connect_timeout)
        self.now += self.takes
        self.left -= 1
        if self.left or not self.answers:
            raise OperationalError(f"{self.left} left")

    def maybe_switch_next(self) -> None:
        self.connect_timeout = 4.0


class TestConnect:
    def test_the_first_that_answers_is_taken(self, monkeypatch):
        broker = Broker(monkeypatch, 3)
        connect(broker)
        assert broker.timeouts == [4.0, 4.0, 4.0]

    @pytest.mark.parametrize("urls", [1, 3])
    def test_each_is_tried_once(self, monkeypatch, urls):
        broker = Broker(monkeypatch, urls, answers=False)
        with pytest.raises(OperationalError, match="0 left"):
            connect(broker, 6)
        assert len(broker.timeouts) == urls

    def test_each_gets_its_share_of_the_time(self, monkeypatch):
        broker = Broker(monkeypatch, 3, takes=1.0)
        connect(broker, 6)
        assert broker.timeouts == [2.0, 2.5, 4.0]

    def test_but_no_more_than_the_usual_connect_timeout(self, monkeypatch):
        broker = Broker(monkeypatch, 1)
        connect(broker, 60)
        assert broker.timeouts == [4.0]

    def test_a_silent_one_leaves_something_to_the_others(self, monkeypatch):
        broker = Broker(monkeypatch, 3, takes=10.0)
        connect(broker, 6)
        assert broker.timeouts == [2.0, dial.LEAST_SHARE / 2, dial.LEAST_SHARE]

    def test_without_a_timeout_of_its_own(self, monkeypatch):
        broker = Broker(monkeypatch, 1)
        broker.connect_timeout = None
        connect(broker, 6)
        assert broker.timeouts == [6.0]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class TestIsRefusal:
    @pytest.mark.parametrize(
        "error",
        [
            AccessRefused("login was refused"),
            NotAllowed("access to vhost 'x' refused for user 'y'"),
            SSLCertVerificationError("self-signed"),
            caused(OperationalError("x"), caused(OSError("y"), AccessRefused("z"))),
        ],
    )
    def test_a_retry_would_fail(self, error):
        assert is_refusal(error)

    @pytest.mark.parametrize(
        "error",
        [
            None,
            ConnectionRefusedError("nobody listens"),
            TimeoutError(),
            NotFound("no queue"),
            NotAllowed("vhost 'x' is down"),
            caused(OperationalError("x"), NotAllowed("vhost 'x' is down")),
        ],
    )
    def test_a_retry_may_help(self, error):
        assert not is_refusal(error)


class TestErrors:
    def test_every_exception_of_a_connection(self):
        errors = errors_of(Connection("amqp://"))
        for error in (OperationalError, ConnectionResetError, NotFound, NotAllowed):
            assert issubclass(error, errors)
        assert not issubclass(ValueError, errors)

    def test_a_failure_says_where_and_keeps_the_password(self):
        connection = Connection("amqp://user:secret@host//")
        assert failure(connection, OSError("gone")).startswith("gone (amqp://user:**@host")
        assert failure(connection, OSError()).startswith("OSError() (")
