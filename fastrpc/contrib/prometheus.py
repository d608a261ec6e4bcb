"""The counters of ``backend.stats()`` for Prometheus; needs ``prometheus_client``.

    from fastrpc.contrib.prometheus import register

    register(app)  # beside the other metrics of the process

The counters are read when they are scraped. Nothing is counted twice, and nothing else is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry

from .. import __version__
from .metrics import BAD_REASONS, METRICS, Metric, describe_backend, read_stats

__all__ = ["StatsCollector", "register"]

#: Names that Prometheus' convention spells in another way: the base unit comes last.
NAMES = {"fastrpc.results.unclaimed.size": "fastrpc_results_unclaimed_bytes"}


class StatsCollector(Collector):
    """A Prometheus collector over the counters of one app.

    Args:
        app: The Celery app. Its backend is made at the first scrape, if not before.
        labels: Labels of all samples, for a process with several apps.
    """

    def __init__(self, app: Any, labels: Mapping[str, str] | None = None) -> None:
        self.app = app
        self.labels = dict(labels or {})

    def describe(self) -> list[Any]:
        """Nothing: who registers the collector does not make the backend by it."""
        return []

    def collect(self) -> Iterator[Any]:
        """All metrics, with their values now."""
        stats = read_stats(self.app)
        for metric in METRICS:
            if metric.key in stats:
                yield self._family(metric, stats[metric.key])
        yield self._info()

    def _family(self, metric: Metric, value: Any) -> Any:
        make = CounterMetricFamily if metric.grows else GaugeMetricFamily
        name = NAMES.get(metric.name, metric.name.replace(".", "_"))
        if not isinstance(value, Mapping):
            family = make(name, metric.help, labels=[*self.labels])
            family.add_metric([*self.labels.values()], value)
            return family
        family = make(name, metric.help, labels=[*self.labels, "reason"])
        # Each series exists from the start: else rate() misses the first message.
        for reason, count in {**dict.fromkeys(BAD_REASONS, 0), **value}.items():
            family.add_metric([*self.labels.values(), reason], count)
        return family

    def _info(self) -> Any:
        """Constant 1: without the other metrics it shows which backend the app has instead."""
        names = [*self.labels, "version", "backend"]
        info = GaugeMetricFamily("fastrpc_info", "Version and backend.", labels=names)
        info.add_metric([*self.labels.values(), __version__, describe_backend(self.app)], 1)
        return info


def register(
    app: Any, registry: CollectorRegistry = REGISTRY, labels: Mapping[str, str] | None = None
) -> StatsCollector:
    """Add an app's counters to a registry.

    Raises:
        ValueError: the registry has a metric of the same name, where it checks for that.
    """
    collector = StatsCollector(app, labels)
    registry.register(collector)
    return collector
