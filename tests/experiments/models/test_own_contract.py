"""Mistakes of a compressor that is not ours: one line before any work, with the line of its file."""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from compressors import base
from compressors.errors import UsageError
from experiments.config.cells import make_cells
from experiments.models import build

HEAD = """\
import torch
from torch import nn
from compressors import Compressor

class Pool(Compressor):
    def __init__(self, dim: int, *, rate: int = 3):
        super().__init__()
        self.out_dim, self.rate = dim, rate
    def out_grid(self, h, w): return h // self.rate, w // self.rate
    def forward(self, features, text=None, text_mask=None):
        return features.unfold(1, 3, 3).unfold(2, 3, 3).mean((-1, -2)).flatten(1, 2)

class Mine(Pool):
"""
LINE = HEAD.count("\n") + 1
INIT = "    def __init__(self, dim: int, *, rate: int = 3): "
FORWARD = "    def forward(self, features, text=None, text_mask=None): "
MISTAKES = {
    INIT + "raise RuntimeError('no')": f"RuntimeError: no ({{file}}, line {LINE})",
    INIT
    + "self.scorer = nn.Linear(dim, 1)": f"AttributeError: cannot assign module before {{rest}}line {LINE})",
    INIT
    + "super().__init__(dim); torch.ones(1).item()": f"cannot be called on meta tensors{{rest}}line {LINE})",
    INIT
    + "nn.Module.__init__(self)": "its constructor must set out_dim, the width of its tokens; it is None",
    "    def __init__(self, dim: int, *, rate: 'Missing' = 3): pass": "NameError: name 'Missing' is not",
    "    def num_tokens(self, h, w): return 16.0": "num_tokens(12, 12) is 16.0: must be 1 or more",
    "    def num_tokens(self, h, w): return 0": "num_tokens(12, 12) is 0: must be 1 or more",
    "    def num_tokens(self, h, w): return 7": "gives (2, 16, 128), expected (2, 7, 128)",
    "    def out_grid(self, h, w): return None": "NotImplementedError: Mine must define out_grid",
    FORWARD + "raise ValueError('x' * 999)": "ValueError: " + "x" * 200 + f" ({{file}}, line {LINE})",
    FORWARD + "return super().forward(features)[..., :-1]": "gives (2, 16, 127), expected (2, 16, 128)",
    FORWARD + "return super().forward(features).flatten(1)": "gives (2, 2048), expected (2, 16, 128)",
    "    varies = True": "varies, but present() gives no tensor of (2, 16): images, num_tokens",
    FORWARD + "return None": "gives NoneType, expected (2, 16, 128)",
}


@pytest.fixture
def register(tmp_path):
    """Registers the class `Mine` of a module as the compressor `mine`, and returns the module's file."""

    def load(text: str):
        file = tmp_path / "plugin.py"
        file.write_text(text)
        spec = spec_from_file_location("plugin_of_a_test", file)
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        base.registry.register("mine")(module.Mine)
        return file

    with pytest.MonkeyPatch.context() as monkeypatch:
        yield load
    base.registry._classes.pop("mine")


def check() -> None:
    [cell] = make_cells({"compressor": ["mine"]})
    build.check_model_config(cell.config)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(register, mistake):
    file = register(f"{HEAD}{mistake}\n")
    with pytest.raises(UsageError, match="compressor 'mine': ") as error:
        check()
    line = str(error.value)
    before, _, after = MISTAKES[mistake].replace("{file}", str(file)).partition("{rest}")
    assert before in line and after in line and "\n" not in line


def test_one_without_mistakes(register):
    register(f"{HEAD}    pass\n")
    check()


def test_what_is_no_compressor(register):
    register("class Mine:\n    def __init__(self, dim: int): pass\n")
    with pytest.raises(UsageError, match="compressor 'mine': Mine must be a subclass of Compressor"):
        check()
