"""What the processor is called, for the results that were measured on it."""

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
