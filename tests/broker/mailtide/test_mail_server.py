"""The local mail server, spoken to over its socket."""

from __future__ import annotations

import smtplib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from mailtide.local import mail_server
from mailtide.local.mail_server import LocalMailServer, keep
from schemas.config import Settings, SmtpSettings
from schemas.errors import SettingsError

MAIL = "From: a@shop.example.com\r\nTo: b@customers.example.com\r\nMessage-ID: <{}>\r\nSubject: x\r\n\r\n.a line\r\nä\r\n"


def send(port: int, identity: str) -> None:
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.sendmail("a@shop.example.com", ["b@customers.example.com"], MAIL.format(identity).encode())


def test_each_mail_is_a_file_by_its_id(tmp_path: Path) -> None:
    server = mail_server.start(Settings(home=str(tmp_path)))
    try:
        send(server.port, "1@shop.example.com")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: send(server.port, f"m{number}@shop.example.com"), range(40)))
    finally:
        server.stop()
    folder = tmp_path / "outbox"
    assert len(list(folder.iterdir())) == 41
    assert (folder / "1@shop.example.com.eml").read_bytes() == MAIL.format("1@shop.example.com").encode()


def test_a_mail_that_came_twice_shows(tmp_path: Path) -> None:
    server = mail_server.start(Settings(home=str(tmp_path)))
    try:
        for _ in range(2):
            send(server.port, "1@shop.example.com")
    finally:
        server.stop()
    assert {file.name for file in (tmp_path / "outbox").iterdir()} == {"1@shop.example.com.eml", "1@shop.example.com.2.eml"}


@pytest.mark.parametrize("identity", ["<../../etc/passwd>", "<>", "", "<a/b\\c\x00d@e>", "<" + "x" * 4000 + ">", "<...>", "<ü@x>"])
def test_no_id_leads_out_of_the_folder(tmp_path: Path, identity: str) -> None:
    kept = keep(tmp_path, b"Message-ID: " + identity.encode() + b"\r\n\r\nx\r\n")
    assert kept.parent == tmp_path
    assert [file.name for file in tmp_path.iterdir()] == [kept.name]


def test_a_folder_that_is_gone_is_a_reason_to_try_again(tmp_path: Path) -> None:
    server = mail_server.start(Settings(home=str(tmp_path)))
    try:
        (tmp_path / "outbox").rmdir()
        with pytest.raises(smtplib.SMTPDataError) as refused:
            send(server.port, "1@shop.example.com")
        assert refused.value.smtp_code == 452
    finally:
        server.stop()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    server = mail_server.start(Settings(home=str(tmp_path)))
    try:
        taken = msgspec.structs.replace(Settings(home=str(tmp_path)), smtp=SmtpSettings(port=server.port))
        with pytest.raises(SettingsError, match=r"smtp\.port"):
            mail_server.start(taken)
    finally:
        server.stop()


def test_it_starts_again_on_the_port_it_had(tmp_path: Path) -> None:
    first = mail_server.start(Settings(home=str(tmp_path)))
    first.stop()
    second = LocalMailServer(tmp_path / "outbox", first.port).start()
    send(second.port, "1@shop.example.com")
    second.stop()
    second.stop()  # twice is once
    assert second.port == first.port
    assert [file.name for file in second.folder.glob("*.eml")] == ["1@shop.example.com.eml"]
