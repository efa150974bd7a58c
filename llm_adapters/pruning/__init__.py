"""In-LLM pruners: training-free methods that drop visual tokens behind some decoder layers.

    model.set_pruner("fastv", layer=2, ratio=0.5)          # a FlashSlothForConditionalGeneration
    model.generate(**inputs)

`base.py` is the contract, each pruner a file of its own; `apply.py` is the mechanism that they share.
"""

from llm_adapters.pruning.base import Choice, Prompt, Pruner, View, keep_highest, register, registry
from llm_adapters.pruning.fastv import FastV
from llm_adapters.pruning.fitprune import FitPrune
from llm_adapters.pruning.pyramid_drop import PyramidDrop
from llm_adapters.pruning.sparsevlm import SparseVLM

__all__ = [
    "Choice",
    "FastV",
    "FitPrune",
    "Prompt",
    "Pruner",
    "PyramidDrop",
    "SparseVLM",
    "View",
    "keep_highest",
    "register",
    "registry",
]
