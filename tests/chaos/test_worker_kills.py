"""Workers killed with signal 9 at random moments of a replay: the audit is clean and nobody's counts or features differ."""

from __future__ import annotations

import pytest

from schemas.config import Settings
from tests.chaos.killing import WORKERS, disturbed

pytestmark = [pytest.mark.broker, pytest.mark.chaos, pytest.mark.timeout(600)]  # a busy machine starts a worker in half a minute


def test_kills_change_nothing_that_is_counted_or_sent(settings: Settings) -> None:
    found = disturbed(settings, 7, WORKERS * 3)
    assert found.triggers >= {"welcome", "post_purchase"}
    assert found.outcomes["sent"] > 0
    assert found.differ == []
    assert found.report.breaches == []
    assert (found.report.open, found.lost, found.twice) == (0, 0, 0)
