"""What this machine's processor can do, and whether C++ can be compiled for it. Standard library only."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from orchestrator.environment import cpp_compiler

_COMPILED = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "amx", "gfni", "vaes", "vpclmul", "popcnt", "adx", "movbe")
"""How the names of instructions begin that a compiler puts into code made for this processor."""
_SHOWN = ("avx2", "avx512f")
_CPUINFO = Path("/proc/cpuinfo")
_VNNI = ("avx512_vnni", "avx_vnni")


def processor() -> dict[str, Any]:
    """Return what decides speed here: figures of another machine are other figures."""
    known = _cpuinfo()
    flags = [flag for flag in known.get("flags", "").split() if "vnni" in flag or flag in _SHOWN]
    return {"processor": known.get("model name", platform.processor()), "flags": flags, "cores": os.cpu_count()}


def instructions() -> tuple[str, ...]:
    """Return the instructions that code compiled here may use; () where the system does not name them."""
    return tuple(sorted(flag for flag in _cpuinfo().get("flags", "").split() if flag.startswith(_COMPILED)))


def has_vnni() -> bool:
    """Say whether products of 8-bit integers are added up in 32 bits here; False where the system does not tell."""
    return any(flag in _VNNI for flag in _cpuinfo().get("flags", "").split())


def compiler_problems() -> list[tuple[str, str]]:
    """Return why nothing can be compiled into a package here, as (message, hint)."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        message = f"packages are compiled for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
        return [(message, "export as onnx")]
    name = cpp_compiler()
    if shutil.which(name) is not None:
        return []
    return [(f"a C++ compiler is needed, {name} is not there", "apt-get install g++, or name yours in CXX")]


def _cpuinfo() -> dict[str, str]:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
