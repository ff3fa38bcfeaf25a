"""A real Prometheus and promtool, from the machine's own Debian packages, kept in the cache. Nothing is installed."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mailtide.local.jars import cache


@functools.cache
def binaries() -> Path:
    """The folder of ``prometheus`` and ``promtool``; skips the test where this machine has neither them nor apt's packages."""
    found = shutil.which("promtool"), shutil.which("prometheus")
    if all(found):
        return Path(str(found[0])).parent
    home = cache() / "prometheus"
    folder = home / "root" / "usr" / "bin"
    if not (folder / "promtool").exists():
        missing = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
        if missing:
            pytest.skip(f"no promtool, and no {missing[0]} to get it with")
        _fetch(home)
    return folder


def _fetch(home: Path) -> None:
    fresh = home / f"fetching-{os.getpid()}"
    (fresh / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    try:
        # First with the machine's own lists; where they are missing or old, with lists of our own, which needs no root.
        said = _download(fresh, [])
        if not list(fresh.glob("*.deb")):
            own = ["-o", f"Dir::State::Lists={fresh / 'lists'}", "-o", f"Dir::Cache={fresh}", "-o", "APT::Sandbox::User="]
            subprocess.run(
                ["apt-get", *own, "-qq", "update"], capture_output=True, timeout=240, check=False
            )  # one dead source is no matter
            said = _download(fresh, own)
        packages = list(fresh.glob("*.deb"))
        if not packages:
            pytest.skip(f"no promtool, and apt has no package prometheus here: {said}")
        subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(fresh / "root")], check=True, timeout=120)
        shutil.rmtree(home / "root", ignore_errors=True)
        (fresh / "root").replace(home / "root")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _download(folder: Path, options: list[str]) -> str:
    done = subprocess.run(
        ["apt-get", *options, "-qq", "download", "prometheus"], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
