"""The producers of an app's pool, without a broker."""

from __future__ import annotations

from kombu import Exchange

from tests.support.apps import make_app
from tests.support.installed import installed


def test_the_exchange_of_a_producer_is_bound_to_the_channel_of_each_loan():
    with installed():
        app = make_app("memory://", "disabled://")
        pool = app.amqp.producer_pool
        with pool.acquire() as producer:
            channel, exchange = producer.channel, producer.exchange
            assert exchange.channel is channel
        with pool.connections.acquire(), pool.acquire() as again:  # on another connection
            assert again is producer
            assert again.channel is not channel
            assert again.exchange.channel is again.channel
            assert again.exchange is exchange  # not a copy: this is the point
            assert exchange == Exchange("")
        app.close()
