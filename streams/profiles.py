"""Who a customer is, encrypted: the only place where an address or a first name rests.

Each customer's profile is AES-256-GCM under a key of its own, and that key
under the master key. Erasing a customer deletes the key, which makes every copy
of the profile unreadable, backups included. SQLite under the home, or any
SQLAlchemy URL. All methods block: call them in a thread from asyncio.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Column, LargeBinary, MetaData, String, Table, create_engine, delete, event, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from schemas.config import Settings
from schemas.errors import StoreError

KEY_BYTES = 32
_NONCE = 12  # bytes, as GCM wants them
_BUSY_SECONDS = 30.0  # a writer waits for another process's write
_CHUNK = 500  # customers in one query; SQLite allows 32,766 parameters, older ones 999

_LONGEST = 1024  # bytes of an id in a row's key

_metadata = MetaData()
_profiles = Table(
    "profiles",
    _metadata,
    Column("customer", String(_LONGEST), primary_key=True),
    Column("key", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
)


class Profile(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a shop told about a customer; absent text is "". ``timezone`` is an IANA name or "", ``traits`` is the rest.

    ``said``: when each trait was said last, in seconds, by the event's own time; of those taken away, too.
    """

    email: str = ""
    first_name: str = ""
    locale: str = ""
    timezone: str = ""
    birthday: str = ""
    traits: dict[str, Any] = {}
    said: dict[str, float] = {}


_NAMES = {
    "email": "email",
    "firstName": "first_name",
    "first_name": "first_name",
    "locale": "locale",
    "timezone": "timezone",
    "birthday": "birthday",
}
_body = msgspec.json.Decoder(Profile)


def merged(profile: Profile, traits: dict[str, Any], at: float) -> Profile:
    """``profile`` with the traits said at ``at`` in place of older ones; null takes a trait away, what is unusable changes nothing."""
    known: dict[str, str] = {}
    rest, said = dict(profile.traits), dict(profile.said)
    for name, value in traits.items():
        field = _NAMES.get(name)
        if at < said.get(field or name, 0.0):
            continue
        if field is None:
            if value is None:
                rest.pop(name, None)
            else:
                rest[name] = value
        elif value is None:
            known[field] = ""
        elif isinstance(value, str) and (field != "timezone" or value in available_timezones()):
            known[field] = value.strip()
        else:
            continue
        said[field or name] = at
    return msgspec.structs.replace(profile, traits=rest, said=said, **known)


class Profiles:
    """The store. Every method raises StoreError, in one line without a value."""

    def __init__(self, engine: Engine, master: bytes) -> None:
        self._engine, self._master = engine, AESGCM(master)

    @classmethod
    def open(cls, settings: Settings) -> Profiles:
        """The store of these settings, made where it is not there yet."""
        home = Path(settings.home)
        url = settings.store.profiles
        try:
            home.mkdir(parents=True, exist_ok=True)
            engine = create_engine(url or f"sqlite:///{home / 'profiles.db'}")
            if engine.dialect.name == "sqlite":
                event.listen(engine, "connect", _sqlite)
                event.listen(engine, "begin", _immediate)
            _metadata.create_all(engine)
            if not url:
                _keep_private(home)
        except (SQLAlchemyError, OSError, ImportError) as error:
            raise _error(error) from error
        return cls(engine, _master(settings))

    def put_many(self, changes: Sequence[tuple[str, dict[str, Any], float]]) -> None:
        """Merge traits, each with the time at which they were said, into the customers' profiles, all or nothing."""
        by_customer: dict[str, list[tuple[dict[str, Any], float]]] = {}
        for customer, traits, at in changes:
            by_customer.setdefault(customer, []).append((traits, at))
        if not by_customer:
            return
        try:
            with self._engine.begin() as connection:
                rows = self._rows(connection, list(by_customer))
                for customer, several in by_customer.items():
                    row = rows.get(customer)
                    key = self._unwrap(customer, row[0]) if row else AESGCM.generate_key(KEY_BYTES * 8)
                    profile = _opened(key, customer, row[1]) if row else Profile()
                    for traits, at in several:
                        profile = merged(profile, traits, at)
                    body = _sealed(AESGCM(key), customer, msgspec.json.encode(profile))
                    if row:
                        connection.execute(_profiles.update().where(_profiles.c.customer == _row_of(customer)).values(body=body))
                    else:
                        wrapped = _sealed(self._master, customer, key)
                        connection.execute(_profiles.insert().values(customer=_row_of(customer), key=wrapped, body=body))
        except SQLAlchemyError as error:
            raise _error(error) from error

    def get_many(self, customers: Iterable[str]) -> dict[str, Profile]:
        """The profiles there are."""
        try:
            with self._engine.connect().execution_options(mailtide_reads=True) as connection:
                rows = self._rows(connection, list(dict.fromkeys(customers)))
        except SQLAlchemyError as error:
            raise _error(error) from error
        return {customer: _opened(self._unwrap(customer, key), customer, body) for customer, (key, body) in rows.items()}

    def erase(self, customer: str) -> bool:
        """Delete the customer's key and profile; whether there was one."""
        try:
            with self._engine.begin() as connection:
                found = connection.execute(delete(_profiles).where(_profiles.c.customer == _row_of(customer))).rowcount > 0
            if self._engine.dialect.name == "sqlite":
                raw = self._engine.raw_connection()  # outside a transaction, where a checkpoint is allowed
                try:
                    raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").close()  # the log must not keep the key
                finally:
                    raw.close()
        except SQLAlchemyError as error:
            raise _error(error) from error
        return found

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @staticmethod
    def _rows(connection: Any, customers: list[str]) -> dict[str, tuple[bytes, bytes]]:
        rows: dict[str, tuple[bytes, bytes]] = {}
        for start in range(0, len(customers), _CHUNK):
            names = {_row_of(customer): customer for customer in customers[start : start + _CHUNK]}
            wanted = select(_profiles).where(_profiles.c.customer.in_(list(names)))
            rows |= {names[row.customer]: (row.key, row.body) for row in connection.execute(wanted)}
        return rows

    def _unwrap(self, customer: str, wrapped: bytes) -> bytes:
        try:
            return self._master.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], customer.encode())
        except InvalidTag as error:
            raise StoreError(
                "a profile's key can't be opened: the master key is another one than it was written with (store.key)"
            ) from error


def _row_of(customer: str) -> str:
    """The key of the customer's row: the id, or a digest of one that a database such as PostgreSQL takes for no key."""
    raw = customer.encode()
    return customer if len(raw) <= _LONGEST and b"\0" not in raw else f"blake2b:{hashlib.blake2b(raw, digest_size=32).hexdigest()}"


def _sealed(cipher: AESGCM, customer: str, plain: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + cipher.encrypt(nonce, plain, customer.encode())


def _opened(key: bytes, customer: str, body: bytes) -> Profile:
    try:
        return _body.decode(AESGCM(key).decrypt(body[:_NONCE], body[_NONCE:], customer.encode()))
    except (InvalidTag, msgspec.MsgspecError) as error:
        raise StoreError("a profile is torn: restore the profile store from a copy, or erase the customer") from error


def _master(settings: Settings) -> bytes:
    if settings.store.key:
        try:
            key = base64.b64decode(settings.store.key, validate=True)
        except binascii.Error:
            key = b""
        if len(key) != KEY_BYTES:
            raise StoreError(f"store.key must be base64 of {KEY_BYTES} bytes: make one with 'openssl rand -base64 32'")
        return key
    path = Path(settings.home) / "keys" / "master"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _write_once(path, base64.b64encode(os.urandom(KEY_BYTES)))
        key = base64.b64decode(path.read_bytes())
    except (OSError, binascii.Error) as error:
        raise StoreError(f"the master key in {path} can't be used: {error}") from error
    if len(key) != KEY_BYTES:
        raise StoreError(f"the master key in {path} is not {KEY_BYTES} bytes in base64: put back the one that was there")
    return key


def _write_once(path: Path, content: bytes) -> None:
    """Whole or not at all, and the first wins of several processes, or of the stages of one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # for the owner's eyes alone
    draft = Path(name)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _keep_private(home: Path) -> None:
    """For the owner's eyes alone, also what an earlier release left readable."""
    with contextlib.suppress(PermissionError):  # a folder of somebody else's that we may write in is theirs to close
        for path in home.glob("profiles.db*"):
            path.chmod(0o600)
        home.chmod(0o700)


def _sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself, so that _immediate can
    connection.execute(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}").close()
    _turn_to_wal(connection)
    for pragma in ("synchronous=NORMAL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _turn_to_wal(connection: Any) -> None:
    """SQLite doesn't wait here, whatever its time-out is; several stages may open a new file at once, and the first turns it."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _immediate(connection: Any) -> None:
    # A reader that turns writer in mid-transaction can't wait for another writer; one that begins as writer can.
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("mailtide_reads") else "BEGIN IMMEDIATE")


def _error(error: Exception) -> StoreError:
    # An SQLAlchemy message quotes the statement's parameters; the driver's own message does not.
    why = " ".join(str(getattr(error, "orig", None) or type(error).__name__).split())
    return StoreError(f"the profile store can't be used: {why}; see store.profiles and the space on its disk")
