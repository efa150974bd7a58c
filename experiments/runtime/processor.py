"""The processor: what it is called, for the results that were measured on it, how much of it is ours, and the
memory beside it."""

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


def read_memory_bytes() -> int:
    """The machine's memory; 0 where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return 0
    return max(0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
