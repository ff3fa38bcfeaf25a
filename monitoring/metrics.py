"""Prometheus series of consumer lag, declared in one place. A figure that is not known has no series: never NaN, never -1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector as PrometheusCollector

from monitoring.mail import Waiting
from monitoring.poll import LagPoller, LagRow

PLACE = ["group", "topic", "partition"]


class Series(PrometheusCollector):
    """The newest look as Prometheus reads it."""

    def __init__(self, collector: LagPoller) -> None:
        self.collector = collector
        self.rows: Sequence[LagRow] = ()
        self.waiting: Sequence[Waiting] | None = None  # not known yet
        self.success = False  # of the newest look

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Every series named in the documentation's table."""
        for name, note, field in (
            ("kafka_lag_records", "records behind the log's end", "lag"),
            ("kafka_lag_seconds", "age of the next record to read", "lag_seconds"),
            ("kafka_lag_drain_seconds", "until the lag is gone at the present rates", "drain_seconds"),
            ("kafka_lag_committed", "committed offset", "committed"),
            ("kafka_lag_produce_records_per_second", "records produced a second", "produced"),
            ("kafka_lag_consume_records_per_second", "records consumed a second", "rate"),
            ("kafka_lag_retention_ratio", "share of the log that is not read yet", "retention_ratio"),
        ):
            family = GaugeMetricFamily(name, note, labels=PLACE)
            for row in self.rows:
                value = getattr(row, field)
                if value is not None:
                    family.add_metric([row.group, row.topic, str(row.partition)], value)
            yield family
        status = GaugeMetricFamily("kafka_lag_status", "1 for the state that holds", labels=[*PLACE, "state"])
        for row in self.rows:
            status.add_metric([row.group, row.topic, str(row.partition), row.state.value], 1.0)
        yield status
        yield from self._groups()
        yield from self._mail()
        yield GaugeMetricFamily("kafka_lag_scrape_seconds", "how long the newest look took", value=self.collector.scrape_seconds)
        yield GaugeMetricFamily("kafka_lag_scrape_success", "1 where the newest look succeeded", value=float(self.success))
        yield GaugeMetricFamily("kafka_lag_scrape_partitions", "pairs of group and partition in the newest look", value=len(self.rows))
        yield CounterMetricFamily("kafka_lag_scrape_errors", "looks, groups and topics that could not be read", value=self.collector.errors)

    def _groups(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        members = GaugeMetricFamily("kafka_lag_group_members", "members of the group", labels=["group"])
        state = GaugeMetricFamily("kafka_lag_group_state", "1 for the state that holds", labels=["group", "state"])
        rebalances = CounterMetricFamily("kafka_lag_group_rebalances", "rebalances seen", labels=["group"])
        for group in self.collector.groups.values():
            if group.members is not None:
                members.add_metric([group.name], group.members)
            state.add_metric([group.name, group.state], 1.0)
            rebalances.add_metric([group.name], group.rebalances)
        yield from (members, state, rebalances)

    def _mail(self) -> Iterable[GaugeMetricFamily]:
        for name, note, field in (
            ("mailtide_waiting_intents", "intents without an outcome", "intents"),
            ("mailtide_waiting_oldest_seconds", "age of the oldest of them", "oldest_seconds"),
            ("mailtide_waiting_will_expire", "of them, how many pass their use-by at the present rate", "will_expire"),
        ):
            family = GaugeMetricFamily(name, note, labels=["stage", "trigger"])
            for one in self.waiting or ():
                family.add_metric([one.stage, one.trigger], getattr(one, field))
            yield family
