from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def mailtide(*words: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mailtide", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=home,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "MAILTIDE_HOME": str(home / "home"), **environment},
    )


@pytest.mark.parametrize(
    ("words", "environment", "code", "said"),
    [
        (("--help",), {}, 0, "customer"),
        (("nonsense",), {}, 2, "No such command"),
        (("worker", "--stages", "intake,wrong"), {}, 2, "no stage"),
        (("up", "--clock", "sun"), {}, 2, "choose event or wall"),
        (("topics", "check"), {"MAILTIDE_KAFKA": "127.0.0.1:1"}, 1, "no Kafka answers at 127.0.0.1:1"),
        (("topics", "check"), {"MAILTIDE_CONFIG": "nowhere.toml"}, 1, "can't be read"),
        (("phrasebook", "sample", "--trigger", "nothing"), {}, 1, "not in the phrase book"),
    ],
)
def test_exit_codes_and_one_line_without_traceback(
    words: tuple[str, ...], environment: dict[str, str], code: int, said: str, tmp_path: Path
) -> None:
    done = mailtide(*words, home=tmp_path, **environment)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_config_check_names_every_mistake(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[[trigger]]\nname = "welcome"\non = "identfy"\n')
    done = mailtide("config", "check", str(file), home=tmp_path)
    assert done.returncode == 1
    assert "'identfy' is no event" in done.stdout
