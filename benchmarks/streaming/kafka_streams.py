"""The Kafka Streams peer without Maven and without a JDK: jars by jgo, compiled by Eclipse's compiler, which is a jar too."""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

from mailtide.local.jars import java, kafka_jars

PROJECT = Path(__file__).parents[1] / "peers" / "kafka-streams"
COMPILER = "org.eclipse.jdt:ecj:3.33.0"  # the last that runs on Java 11 and later
HEAP = "-Xmx512m"


def coordinates() -> str:
    """The dependencies that the project's pom.xml names, as jgo takes them."""
    names = {"m": "http://maven.apache.org/POM/4.0.0"}
    found = ET.parse(PROJECT / "pom.xml").getroot().iterfind("m:dependencies/m:dependency", names)
    return "+".join(":".join(one.findtext(f"m:{part}", "", names) for part in ("groupId", "artifactId", "version")) for one in found)


def command(home: Path) -> list[str]:
    """What starts the peer; compiled where it isn't yet, or is older than its source."""
    jars, classes = kafka_jars(coordinates()), home / "kafka-streams"
    source = PROJECT / "src" / "main" / "java" / "Intake.java"
    compiled = classes / "Intake.class"
    path = os.pathsep.join(map(str, jars))
    if not compiled.exists() or compiled.stat().st_mtime < source.stat().st_mtime:
        compiler = os.pathsep.join(map(str, kafka_jars(COMPILER)))
        call = [java(), "-cp", compiler, "org.eclipse.jdt.internal.compiler.batch.Main", "-17", "-nowarn", "-cp", path, "-d", str(classes)]
        done = subprocess.run([*call, str(source)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the Kafka Streams peer can't be compiled: {(done.stderr or done.stdout).strip()[-500:]}")
    return [java(), HEAP, "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", f"{classes}{os.pathsep}{path}", "Intake"]
