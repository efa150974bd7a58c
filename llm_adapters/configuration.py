"""Configuration of the composed model."""
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

import compressors
import connectors.towers_open_clip  # noqa: F401  registers its vision config
from compressors.errors import UsageError
from connectors.embq import registry as query_modules
from connectors.projector import registry as projectors
from llm_adapters.conversation import Template
from llm_adapters.pruning import registry as pruners


class FlashSlothConfig(PreTrainedConfig):
    """Vision tower + compressor + projector + causal LM (+ query module).

    vision_config, text_config   the tower's and the LLM's own configurations
    select_layer                 tower hidden state that is compressed
    compressor(_knobs)           name and knobs in the compressor registry
    projector(_knobs)            name and knobs; "auto": mlp2x_gelu, or identity after a compressor that
                                 projects itself
    query_module(_knobs)         name and knobs; None: no query tokens
    pruner(_knobs)               name and knobs; None: all visual tokens go through all decoder layers
    prompt                       system, user, assistant and end strings of the conversation
    """

    model_type = "slothkit"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="phi"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    select_layer: int = -2
    compressor: str = "sap"
    compressor_knobs: dict | None = None
    projector: str = "auto"
    projector_knobs: dict | None = None
    query_module: str | None = None
    query_module_knobs: dict | None = None
    pruner: str | None = None
    pruner_knobs: dict | None = None
    image_token_id: int | None = None
    query_token_id: int | None = None
    prompt: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        compressors.check(self.compressor, **(self.compressor_knobs or {}))
        if self.projector != "auto":
            projectors.check(self.projector, **(self.projector_knobs or {}))
        elif self.projector_knobs:
            raise UsageError(f"projector knobs {sorted(self.projector_knobs)} need a projector; name one of "
                             f"{', '.join(projectors.names())} instead of 'auto'")
        if self.query_module is not None:
            query_modules.check(self.query_module, **(self.query_module_knobs or {}))
        if self.pruner is not None:
            pruners.check(self.pruner, **(self.pruner_knobs or {}))

    @property
    def template(self) -> Template:
        """The prompt's strings as the conversation builder takes them."""
        return Template(**(self.prompt or {}))


AutoConfig.register("slothkit", FlashSlothConfig, exist_ok=True)
