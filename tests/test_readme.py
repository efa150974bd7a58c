"""The example of compressors alone runs where transformers and the rest are not to be had."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "compressors" / "README.md").read_text()
BLOCKED = (
    "transformers",
    "lightning",
    "torchvision",
    "open_clip",
    "omegaconf",
    "torchmetrics",
    "rich",
    "llm_adapters",
    "connectors",
    "experiments",
)
BEFORE = f"import sys, torch\nsys.modules.update(dict.fromkeys({BLOCKED}))\ntorch.manual_seed(0)\n"
CHECK = """
still = [name for name, part in eyes.named_parameters() if part.grad is None or part.grad.abs().max() < 1e-7]
print(tuple(tokens.shape), still)
"""


@pytest.mark.slow
def test_compressors_alone():
    """A step of training reaches the ViT, the compressor and the projector. SAP's last bias has no effect."""
    code = re.search(r"```python\n(import torch\n.*?)```", PAGE, re.S).group(1)
    command = [sys.executable, "-c", BEFORE + code + CHECK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(8, 16, 128) ['compressor.scorer.3.bias']\n"
