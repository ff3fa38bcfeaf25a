"""Every error that Mailtide raises on purpose.

::

    MailtideError            anything a user can cause or mend; the command line prints it as one line, exit 1
    ├── SettingsError        a value in mailtide.toml or the environment
    ├── KafkaUnavailable     no broker answers, or the embedded one can't start
    ├── TopicMismatch        the cluster's topics differ from the declared ones
    ├── ModelError           a base model folder, graph or tokenizer that can't be used
    ├── PhrasebookError      a clause or file of the phrase book
    ├── ArtifactError        a missing, torn or foreign adapter
    ├── StoreError           profiles, keys, local state (a full disk among them)
    │   ├── ForeignState     a customer's state in the bytes of another version
    │   └── LostState        a changelog that knows less than was applied
    └── SourceError          a replay source that can't be read
"""

from __future__ import annotations

import msgspec

# What decoding JSON raises on strange bytes: msgspec leaves to Python what is no UTF-8 within a string, and what is nested too deep.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class MailtideError(Exception):
    """Base of all: its text is one line that names the file, field or record, and the mend."""


class SettingsError(MailtideError): ...


class KafkaUnavailable(MailtideError): ...


class TopicMismatch(MailtideError): ...


class ModelError(MailtideError): ...


class PhrasebookError(MailtideError): ...


class ArtifactError(MailtideError): ...


class StoreError(MailtideError): ...


class ForeignState(StoreError): ...


class LostState(StoreError): ...


class SourceError(MailtideError): ...
