"""In-LLM pruners: training-free methods that drop visual tokens behind some decoder layers.

    model.set_pruner("fastv", layer=2, ratio=0.5)          # a FlashSlothForConditionalGeneration
    model.generate(**inputs)

`base.py` is the contract, each pruner a file of its own; `apply.py` is the mechanism that they share.
"""

from llm_adapters.pruning.base import Choice, Prompt, Pruner, View, keep_highest, register, registry
from llm_adapters.pruning.dart import Dart
from llm_adapters.pruning.fastv import FastV
from llm_adapters.pruning.fitprune import FitPrune
from llm_adapters.pruning.gprune import GPrune
from llm_adapters.pruning.pact import Pact
from llm_adapters.pruning.pyramid_drop import PyramidDrop
from llm_adapters.pruning.random_drop import RandomDrop
from llm_adapters.pruning.sparsevlm import SparseVLM
from llm_adapters.pruning.vtw import Vtw

__all__ = [
    "Choice",
    "Dart",
    "FastV",
    "FitPrune",
    "GPrune",
    "Pact",
    "Prompt",
    "Pruner",
    "PyramidDrop",
    "RandomDrop",
    "SparseVLM",
    "View",
    "Vtw",
    "keep_highest",
    "register",
    "registry",
]
