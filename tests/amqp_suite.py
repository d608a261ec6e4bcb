"""py-amqp's own tests, run over our connection and channel.

    python -m tests.amqp_suite SOURCES [PYTEST ARGUMENTS]   # SOURCES has py-amqp's tests, `t`

py-amqp's promises hold for our transport too; `make test-amqp` fetches the tests of the installed
version. Those that need a broker have a private one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import amqp.channel
import amqp.connection
import pytest
import trustme

from fastrpc.transport.channel import Channel
from fastrpc.transport.connection import Connection
from tests.support import amqp_mocks
from tests.support.broker import RabbitMQ
from tests.support.suites import LeftOut, run_suite

#: Reasons of more than one entry.
METHOD_ARGUMENTS = "The arguments of methods, which py-amqp encodes and decodes for ours too."
MESSAGE = "py-amqp's message, which ours delivers too."
SMALL_FRAMES = "It negotiates frames of 16 bytes; AMQP demands 4096 at least, and so does ours."
INTERNET = "It opens py-amqp's socket to a host in the Internet."

#: Tests -> why they are left out.
LEFT_OUT = {
    "*/test_abstract_channel.py::*": "py-amqp's base class, which ours has too.",
    "*/test_basic_message.py::*": MESSAGE,
    "*/test_exceptions.py::*": "py-amqp's exceptions, which ours raises too.",
    "*/test_platform.py::*": "The socket options, which py-amqp sets for ours too.",
    "*/test_sasl.py::*": "py-amqp's authentication, which ours uses as it is.",
    "*/test_transport.py::*": "The socket, which py-amqp opens and closes for ours too.",
    "*/test_utils.py::*": "py-amqp's helpers, which ours does not replace.",
    "*/test_channel.py::*::test_basic_publish_connection_blocked_no*": (
        "Ours looks at the socket before each publish, also if the broker cannot tell of a block."
    ),
    "*/test_connection.py::*::test_blocking_read__no_timeout": (
        "Its frame is a mock, which has no bytes for our reader."
    ),
    "*/test_connection.py::*::test_blocking_read__timeout": (
        "It reads with the transport's read_frame(); ours reads the socket, see test_connection."
    ),
    "*/test_connection.py::*::test_blocking_read__SSLError": (
        "Its timeouts are plain SSLErrors, as in Python 2; ours knows the classes of today."
    ),
    "*/test_connection.py::*::test_on_tune": SMALL_FRAMES,
    "*/test_connection.py::*::test_on_tune__client_heartbeat_disabled": SMALL_FRAMES,
    "*/test_method_framing.py::test_frame_handler::*": (
        "py-amqp's frame handler, to which ours gives all frames but those of deliveries."
    ),
    "*/test_method_framing.py::*::test_write_slow_unicode": (
        "It expects that a large message is written as bytes, not as a memoryview."
    ),
    "*/test_method_framing.py::*::test_write_slow_zero_len_body": (
        "It expects one write for each frame of a large message; ours writes them at once."
    ),
    "*/test_serialization.py::*::test_bit_offset_adjusted_correctly": METHOD_ARGUMENTS,
    "*/test_serialization.py::*::test_bits_around_field*": METHOD_ARGUMENTS,
    "*/test_serialization.py::*::test_float": METHOD_ARGUMENTS,
    "*/test_serialization.py::*::test_loads_unknown_type": METHOD_ARGUMENTS,
    "*/test_serialization.py::*::test_roundtrip": METHOD_ARGUMENTS,
    "*/test_serialization.py::*::test_sixteen_bitflags": METHOD_ARGUMENTS,
    "*/test_serialization.py::*::test_getattr": MESSAGE,
    "*/test_serialization.py::*::test_inbound_body*": MESSAGE,
    "*/test_serialization.py::*::test_pickle": MESSAGE,
    "*/test_serialization.py::*::test_read_item?x-*": (
        "It has bytes behind the item, and ours decodes only whole tables."
    ),
    "*/test_rmq.py::test_tls_default_certs": INTERNET,
    "*/test_rmq.py::test_tls_no_default_certs_fails": INTERNET,
}

#: What the names in a module of tests stand for. Those of ``amqp`` itself stand for ours anyway.
STANDS_FOR: dict[str, dict[str, Any]] = {
    "t.unit.test_channel": {"Channel": amqp_mocks.MockedChannel},
    "t.unit.test_connection": {"Connection": amqp_mocks.MockedConnection},
    "t.unit.test_method_framing": {"frame_writer": amqp_mocks.mocked_writer},
    "t.unit.test_serialization": {
        "Message": amqp_mocks.TableMessage,
        "_read_item": amqp_mocks.read_item,
        "dumps": amqp_mocks.dumps,
        "loads": amqp_mocks.loads,
    },
    "t.integration.test_integration": {
        "Channel": amqp_mocks.MockedChannel,
        "Connection": amqp_mocks.MockedConnection,
    },
}


class Ours:
    """Gives the tests ours in place of py-amqp's."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for module in {item.module for item in session.items}:  # type: ignore[attr-defined]
            for name, ours in STANDS_FOR.get(module.__name__, {}).items():
                assert hasattr(module, name), f"{module.__name__} has no {name}"
                setattr(module, name, ours)


def issue_certificates(folder: Path) -> dict[str, object]:
    """Write the files that the tests expect in ``t/certs``; return the broker's TLS options."""
    folder.mkdir(exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca_certificate.pem"))
    for name in ("client", "server"):
        leaf = authority.issue_cert("localhost")
        leaf.private_key_pem.write_to_path(str(folder / f"{name}_key.pem"))
        leaf.cert_chain_pems[0].write_to_path(str(folder / f"{name}_certificate.pem"))
    for name in ("key", "certificate"):
        (folder / f"client_{name}_broken.pem").write_text("broken\n")
    return {
        "cacertfile": folder / "ca_certificate.pem",
        "certfile": folder / "server_certificate.pem",
        "keyfile": folder / "server_key.pem",
        "verify": "verify_peer",
        "fail_if_no_peer_cert": "true",
    }


def main(sources: str, *more: str) -> int:
    """Run the tests; return pytest's exit code."""
    for module in (amqp, amqp.connection):
        module.Connection = Connection
    for module in (amqp, amqp.channel):
        module.Channel = Channel
    sources = os.path.abspath(sources)
    os.chdir(sources)  # the tests name their certificates from here
    with RabbitMQ(tls=issue_certificates(Path(sources, "t", "certs"))) as broker:
        os.environ["RABBITMQ_HOST"] = "localhost"
        os.environ["RABBITMQ_5672_TCP"] = str(broker.port)
        os.environ["RABBITMQ_5671_TCP"] = str(broker.tls_port)
        # A test that fails is not repeated, even if the plugin for that is installed.
        options = ["-p", "no:rerunfailures", *more]
        plugins = [LeftOut(LEFT_OUT), Ours()]
        return run_suite(sources, ["t/unit", "t/integration"], plugins, *options)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
