"""The alert rules, judged by promtool, and the dashboard's shape."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from monitoring.metrics import Series
from monitoring.poll import LagPoller
from schemas.config import Settings
from streams.metrics import DECLARED
from tests.paths import ROOT
from tests.prometheus import binaries

pytestmark = pytest.mark.timeout(900)  # the first run fetches Prometheus
DEPLOY = ROOT / "deploy"
RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binaries() / "promtool", *words], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("words", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")], ids=" ".join)
def test_promtool_agrees(words: tuple[str, str, str]) -> None:
    done = promtool(*words[:2], DEPLOY / words[2])
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_would_notice(tmp_path: Path) -> None:
    """The rules' tests fail on rules that are broken: on a limit that is off, and on a clause that is gone."""
    tests, rules = (DEPLOY / "alerts_test.yml").read_text(), (DEPLOY / "alerts.yml").read_text()
    for right, wrong in (("> 0.003 *", "> 0.03 *"), ("for: 2m", "for: 20m"), (',group!~".*mailtide-trainer"', ""), ("> 3600", "> 1")):
        assert right in rules
        (tmp_path / "alerts.yml").write_text(rules.replace(right, wrong))
        (tmp_path / "alerts_test.yml").write_text(tests)
        assert promtool("test", "rules", tmp_path / "alerts_test.yml").returncode == 1, right


def test_every_rule_has_a_test_in_which_it_fires_and_a_line_in_the_manual() -> None:
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    fired = {check["alertname"] for test in tests for check in test["alert_rule_test"] if check["exp_alerts"]}
    names = {rule["alert"] for rule in RULES}
    assert fired == names
    manual = (DEPLOY.parent / "docs" / "operations.md").read_text()
    assert [name for name in sorted(names) if f"`{name}`" not in manual] == []


def test_rules_and_dashboard_ask_for_series_that_exist() -> None:
    registry = CollectorRegistry()
    registry.register(Series(LagPoller(Settings(), lambda _name: True)))
    text = generate_latest(registry).decode()
    known = {*DECLARED, *re.findall(r"^# TYPE (\S+)", text, re.M), "process_resident_memory_bytes", "up"}
    for expression in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]:
        asked = set(re.findall(r"\b(?:kafka_lag|mailtide|process)_\w+|\bup\b", expression))
        assert asked, expression
        assert asked <= known, asked - known


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert {target["refId"] for target in panel["targets"]}
            assert panel["datasource"]["uid"] == "${source}"
    taken = [
        (p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy)
        for p in panels
        for dx in range(p["gridPos"]["w"])
        for dy in range(p["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken)), "panels lie on each other"
