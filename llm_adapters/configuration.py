"""Configuration of the composed model."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

import compressors
import connectors.towers.open_clip  # noqa: F401  registers its vision config
from compressors.errors import UsageError
from compressors.registry import conform
from connectors.projector import registry as projectors
from connectors.query_modules import registry as query_modules
from llm_adapters.adapter import find_position_limit
from llm_adapters.conversation import Template
from llm_adapters.pruning import registry as pruners

Part = dict[str, Any] | PreTrainedConfig | None
FIELD_TYPES = {
    "select_layer": int,
    "compressor": str,
    "tower_text_config": dict[str, Any] | None,
    "compressor_knobs": dict[str, Any] | None,
    "projector": str,
    "projector_knobs": dict[str, Any] | None,
    "query_module": str | None,
    "query_module_knobs": dict[str, Any] | None,
    "pruner": str | None,
    "pruner_knobs": dict[str, Any] | None,
    "image_token_id": int | None,
    "query_token_id": int | None,
    "prompt": dict[str, str] | None,
}


def make_part_config(config: Part, default: str) -> PreTrainedConfig:
    """A part's configuration, from a dictionary too. `default`: its model type where it does not say."""
    if not isinstance(config, PreTrainedConfig):
        config = AutoConfig.for_model(**{"model_type": default, **(config or {})})
    if not hasattr(config, "pad_token_id"):
        config.pad_token_id = None  # transformers 5.0 asks for it all the same
    return config


class FlashSlothConfig(PreTrainedConfig):
    """Vision tower + compressor + projector + causal LM (+ query module).

    vision_config, text_config   the tower's and the LLM's own configurations
    tower_text_config            of the whole CLIP or SigLIP whose text encoder stands with the tower, a
                                 dictionary; None: there is none
    select_layer                 tower hidden state that is compressed
    compressor(_knobs)           name and knobs in the compressor registry
    projector(_knobs)            name and knobs; "auto": mlp2x_gelu, or identity after a compressor that
                                 projects itself
    query_module(_knobs)         name and knobs; None: no query tokens
    pruner(_knobs)               name and knobs; None: all visual tokens go through all decoder layers
    prompt                       system, user, assistant and end strings of the conversation
    """

    model_type = "slothkit"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: Part = None,
        text_config: Part = None,
        select_layer: int = -2,
        compressor: str = "sap",
        compressor_knobs: dict | None = None,
        projector: str = "auto",
        projector_knobs: dict | None = None,
        query_module: str | None = None,
        query_module_knobs: dict | None = None,
        pruner: str | None = None,
        pruner_knobs: dict | None = None,
        image_token_id: int | None = None,
        query_token_id: int | None = None,
        prompt: dict | None = None,
        tower_text_config: dict | None = None,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ):
        self.vision_config = make_part_config(vision_config, "siglip_vision_model")
        self.text_config = make_part_config(text_config, "phi")
        self.select_layer = select_layer
        self.compressor = compressor
        self.compressor_knobs = compressor_knobs
        self.projector = projector
        self.projector_knobs = projector_knobs
        self.query_module = query_module
        self.query_module_knobs = query_module_knobs
        self.pruner = pruner
        self.pruner_knobs = pruner_knobs
        self.image_token_id = image_token_id
        self.query_token_id = query_token_id
        self.prompt = prompt
        self.tower_text_config = tower_text_config
        kwargs["tie_word_embeddings"] = tie_word_embeddings
        super().__init__(**kwargs)
        self.check()

    def check(self) -> None:
        """UsageError for a value of another type, and for a part's name or knob that its registry does not
        know."""
        for name, hint in FIELD_TYPES.items():
            conform(getattr(self, name), hint, name)
        compressors.check(self.compressor, **(self.compressor_knobs or {}))
        if self.projector != "auto":
            projectors.check(self.projector, **(self.projector_knobs or {}))
        elif self.projector_knobs:
            raise UsageError(
                f"projector knobs {sorted(self.projector_knobs)} need a projector; name one of "
                f"{', '.join(projectors.names())} instead of 'auto'"
            )
        if self.query_module is not None:
            query_modules.check(self.query_module, **(self.query_module_knobs or {}))
        if self.pruner is not None:
            pruners.check(self.pruner, **(self.pruner_knobs or {}))

    @property
    def template(self) -> Template:
        """The prompt's strings as the conversation builder takes them."""
        return Template(**(self.prompt or {}))

    @property
    def position_limit(self) -> int | None:
        """Tokens that the language model has positions for; None where it does not say."""
        return find_position_limit(self.text_config)


AutoConfig.register("slothkit", FlashSlothConfig, exist_ok=True)
