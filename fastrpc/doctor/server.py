"""What the broker is: its version, the machine it shares, the limits of a connection."""

from __future__ import annotations

import os

from .findings import Checks, Verdict, note, ok, warn
from .subject import Subject
from .texts import version_in

__all__ = ["SERVER_CHECKS", "broker_version"]

SERVER_CHECKS = Checks()
#: The RabbitMQ versions that fastrpc's tests were run with, first and last.
TESTED_BROKERS = ((3, 10), (4, 3))


@SERVER_CHECKS.add("broker")
def check_version(subject: Subject) -> Verdict:
    """Which product and version is it, and was it tested?"""
    properties = subject.connection.connection.server_properties
    product, number = str(properties.get("product", "?")), str(properties.get("version", "?"))
    found = f"{product} {number}, {properties.get('platform', '?')}"
    if product != "RabbitMQ":
        return note(found, "fastrpc is tested with RabbitMQ 3.10 to 4.3 only.")
    numbers = broker_version(subject)
    if numbers < TESTED_BROKERS[0]:
        return warn(found, "fastrpc is not tested with a version this old: move to 3.10 or later.")
    if numbers > TESTED_BROKERS[1]:
        return note(found, "fastrpc was not tested with a version this new: the newest was 4.3.")
    return ok(found)


@SERVER_CHECKS.add("cores")
def check_cores(subject: Subject) -> Verdict | None:
    """Does the broker share few cores with its clients?"""
    cores = os.cpu_count() or 1
    if cores > 4 or not subject.node.is_local:
        return None
    return note(
        f"the broker shares {cores} cores with its clients",
        "Idle schedulers of Erlang then waste CPU time by busy waiting: start the broker with "
        'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none".',
    )


@SERVER_CHECKS.add("limits")
def check_limits(subject: Subject) -> Verdict:
    """What did client and broker agree on at the login?"""
    link = subject.connection.connection
    found = f"frame_max {link.frame_max:,} bytes, channel_max {link.channel_max}"
    if link.frame_max < 131072:
        return note(
            found,
            "Large messages are cut into many frames: raise frame_max in rabbitmq.conf to its "
            "default, 131072.",
        )
    return ok(found)


def broker_version(subject: Subject) -> tuple[int, int]:
    """The broker's major and minor number; (0, 0) if it does not say them."""
    return version_in(str(subject.connection.connection.server_properties.get("version", "")))
