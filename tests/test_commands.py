"""What all commands have in common."""

import subprocess
import sys

import pytest

COMMANDS = (
    "compressors",
    "llm_adapters.released",
    "experiments.attention_maps",
    "experiments.backbones.chat_preset",
    "experiments.backbones.small",
    "experiments.bench",
    "experiments.chat",
    "experiments.efficiency",
    "experiments.gallery",
    "experiments.picture_vqa",
    "experiments.runs",
    "experiments.sharing",
    "experiments.sweep",
    "ablations.decide",
    "ablations.readme_picture",
    "ablations.report",
)


@pytest.fixture(scope="module")
def signatures_are_cached():
    """The sweep's first help may fill the cache of signatures, which imports everything."""
    subprocess.run([sys.executable, "-m", "experiments.sweep", "--help"], capture_output=True, check=True)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("signatures_are_cached")
def test_help_does_not_wait_for_torch(command):
    traced = [sys.executable, "-X", "importtime", "-m", command, "--help"]
    done = subprocess.run(traced, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Usage: python -m {command}")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported or "dataclasses" in imported  # the trace is there
    assert "torch" not in imported
