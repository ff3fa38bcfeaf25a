"""``streams/faust`` and ``transport/oversized.py`` lean on private names of Faust and aiokafka: this fails as soon as one moves."""

from __future__ import annotations

import gc
import inspect
import weakref
from importlib.metadata import version
from typing import Any
from unittest.mock import AsyncMock, Mock

import faust
import pytest
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import UnknownTopicOrPartitionError
from aiokafka.producer.message_accumulator import BatchBuilder
from faust import app as faust_app
from faust import streams as faust_streams
from faust.tables import recovery
from faust.transport import conductor, consumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode import Service, threads

from schemas.config import KafkaSettings
from streams.faust import app as batch_app
from streams.faust import consumer as consumers


def test_the_versions_are_those_it_was_written_for() -> None:
    assert version("faust-streaming") == "0.15.3", "read streams/faust/app.py against the new Faust before moving the pin"
    assert version("aiokafka") == "0.14.0", "read streams/faust/app.py against the new aiokafka before moving the pin"


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (
            driver.Consumer,
            "_new_consumer_thread getmany _getmany _get_active_partitions _new_offset _add_gap perform_seek commit ack highwater "
            "highwaters position assignment on_partitions_revoked on_partitions_assigned verify_event_path "
            "on_buffer_full on_buffer_drop stop_flow",
        ),
        (driver.AIOKafkaConsumerThread, "_create_consumer seek_to_beginning on_thread_stop on_crash"),
        (driver.Producer, "_settings_auth"),
        (driver.Transport, "Consumer Producer"),
        (faust.App, "_create_directories transport producer_transport consumer flow_control rebalancing consumer_generation_id"),
        (faust.Schema, "loads_key loads_value"),
        (Service, "crash_reason"),
        (BatchBuilder, "append size _build"),
        (faust_streams.Stream, "noack events"),
    ],
)
def test_the_names_are_there(owner: type, names: str) -> None:
    missing = [name for name in names.split() if not hasattr(owner, name) and name not in _annotations(owner)]
    assert not missing, f"{owner.__module__}.{owner.__qualname__} has lost {missing}"


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (
            consumer.Consumer.__init__,
            "self._acked = self._acked_index = self._read_offset = self._committed_offset = "
            "self._unacked_messages = self.can_resume_flow =",
        ),
        (driver.AIOKafkaConsumerThread.on_start, "self._create_consumer("),
        (driver.Producer._new_producer, "self._settings_auth()"),
        (driver.ThreadedProducer._new_producer, "_settings_auth()"),
        (consumer.Consumer._filter_committable_offsets, "self._new_offset(tp)"),
        (consumer.Consumer._filter_committable_offsets, "self._should_commit(tp,offset)"),
        (consumer.Consumer._should_commit, "self._committed_offset offset>committed"),
        (consumer.Consumer._filter_tps_with_pending_acks, "self._acked"),
        (consumer.Consumer.wait_empty, "self._unacked_messages"),
        (consumer.Consumer._drain_messages, "getmany(timeout= get_read_offset set_read_offset(tp,offset) self.suspend_flow.wait()"),
        (conductor.ConductorCompiler.build, "message.incref("),
        (faust_streams.Stream._py_aiter, "self.enable_acks event.ack() consumer_generation_id"),
        (recovery.Recovery._resume_streams, "consumer.perform_seek() resume_flow()"),
        (faust_app.App._on_partitions_revoked, "stop_flow _consumer_wait_empty"),
        (faust_app.App.on_first_start, "self._create_directories()"),
        (Service.__init__, "self._crashed ="),
        (driver.AIOKafkaConsumerThread.getmany, "_max_poll_records"),
        (Fetcher.fetched_records, "max_records drained[tp] = records getall(max_records)"),
        (FetchResult.getall, "inself._partition_records: self._update_position() max_records"),
        (FetchResult._update_position, "self._partition_records.next_fetch_offset"),
        (
            PartitionRecords._unpack_records,
            "self._records next_batch.producer_id isnotNone self._consume_aborted_up_to(next_batch.base_offset) "
            "next_batch.is_control_batchandself._contains_abort_marker(next_batch) "
            "self._aborted_producers.discard(next_batch.producer_id) "
            "next_batch.is_transactionalandnext_batch.producer_idinself._aborted_producers next_batch.next_offset",
        ),
        (FetchResult.has_more, "self._partition_records isnotNone"),
        (driver.AIOKafkaConsumerThread._fetch_records, "fetcher.fetched_records( active_partitions,timeout= max_records="),
    ],
)
def test_they_are_still_used_the_same_way(function: Any, names: str) -> None:
    source = "".join(inspect.getsource(function).split())
    missing = [name for name in names.replace(" =", "=").split() if name not in source]
    assert not missing, f"{function.__qualname__} no longer has {missing}"


def test_a_message_takes_what_we_give_it() -> None:
    assert "generation_id" in inspect.signature(ConsumerMessage.__init__).parameters
    message = ConsumerMessage("t", 0, 5, 1.0, 0, (), None, object(), None, 0, 0, None, generation_id=3)
    assert (message.refcount, message.acked, message.offset) == (0, False, 5)


def test_done_batches_keep_no_records() -> None:
    """Faust's message and the batch hold each other, so the records would wait for the collector: a tenth of intake's time."""
    record = Mock(offset=5)
    gone, batch = weakref.ref(record), batch_app.Batch("t", 0, [record], 6)
    batch.message = ConsumerMessage("t", 0, 5, 1.0, 0, (), None, batch, None, 0, 0, None, generation_id=3)
    del record
    assert gone() is not None
    batch.done()
    gc.collect()  # of a mock's own cycles; the batch itself is still held
    assert (batch.records, gone(), batch.first, batch.last) == ([], None, 5, 5)


def _annotations(owner: type) -> set[str]:
    return {name for kind in owner.__mro__ for name in getattr(kind, "__annotations__", {})}


async def test_an_app_that_never_started_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no Kafka answers, the one line that says so is all that is said: no AttributeError from the clean-up after it."""
    monkeypatch.setattr(batch_app, "app_of", lambda _: Mock(_consumer=None, start=AsyncMock(side_effect=ConnectionError), stop=AsyncMock()))
    app = batch_app.BatchApp("group", KafkaSettings(), ["topic"], AsyncMock())
    with pytest.raises(ConnectionError):
        await app.start()
    await app.stop()


async def test_a_last_commit_that_is_refused_keeps_no_thread_and_no_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker had said its error and stayed: Faust was never told to stop, and its thread outlives a program."""
    faust_app = Mock(start=AsyncMock(), stop=AsyncMock(), consumer=Mock(commit=AsyncMock(side_effect=UnknownTopicOrPartitionError)))
    monkeypatch.setattr(batch_app, "app_of", lambda _: faust_app)
    gone = AsyncMock()
    app = batch_app.BatchApp("group", KafkaSettings(), ["topic"], AsyncMock(), on_revoked=gone)
    await app.start()
    app.assign([TP("topic", 0)])
    with pytest.raises(UnknownTopicOrPartitionError):
        await app.stop()
    faust_app.stop.assert_awaited_once()
    gone.assert_awaited_once_with("topic", 0)


def test_a_forgotten_consumer_thread_keeps_no_process_alive() -> None:
    assert consumers.Thread.Worker(Mock()).daemon
    assert "self.Worker(" in inspect.getsource(threads.ServiceThread)
