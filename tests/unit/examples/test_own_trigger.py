"""The example trigger is one that ``mailtide config check`` passes."""

from __future__ import annotations

from typer.testing import CliRunner

from mailtide.cli.main import app
from tests.paths import ROOT


def test_config_check_passes_it() -> None:
    result = CliRunner().invoke(app, ["config", "check", str(ROOT / "examples" / "own_trigger.toml")])
    assert result.exit_code == 0, result.output
