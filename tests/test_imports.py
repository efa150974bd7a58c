"""What is imported when: libraries that take seconds wait for what needs them."""

import json
import subprocess
import sys

# in one process, one behind another, as all of them import torch
STEPS = (
    "import compressors",
    "import compressors; compressors.names()",
    "from experiments.stages import checks",
    "import experiments.stages.train",
)


def list_loaded_modules() -> list[set[str]]:
    """Top-level modules that a fresh interpreter has loaded after each of STEPS."""
    tell = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    code = "\n".join(line for step in STEPS for line in (step, tell))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(json.loads(line)) for line in done.stdout.splitlines()]


def test_libraries_are_imported_where_they_are_needed():
    package, methods, checks, training = list_loaded_modules()
    assert "torch" not in package  # a typo is answered before torch is loaded
    assert {"torch", "einops"} <= methods
    others = {"transformers", "lightning", "omegaconf", "torchvision", "open_clip", "torchmetrics", "rich"}
    assert not others & methods
    assert "lightning" not in checks  # half a second that only training needs
    assert "lightning" in training
    assert "peft" not in training  # seconds, and bitsandbytes, which writes warnings
