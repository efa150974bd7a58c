"""Importing this registers our configuration, model and processor with transformers' Auto classes."""

from llm_adapters.configuration import FlashSlothConfig
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor

__all__ = ["FlashSlothConfig", "FlashSlothForConditionalGeneration", "FlashSlothProcessor"]
