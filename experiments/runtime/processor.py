"""The processor: what it is called, for the results that were measured on it, and how much of it is ours."""

import os
import platform
from pathlib import Path

PROCESSOR_FILE = Path("/proc/cpuinfo")  # Linux alone has it, and its platform.processor() is often empty


def read_processor_name() -> str:
    """The CPU's model name, or its architecture where the system does not tell."""
    try:
        lines = PROCESSOR_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def count_cores() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux alone knows a process's own share
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
