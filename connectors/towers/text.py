"""The text encoder that was trained together with a tower, and what takes the tower's patches into its space.

    question -> ids (n, L) -> text model -> (n, E)          patches (..., C) -> norm -> projection -> (..., E)

CLIP's patches go through the norm and the projection that its CLS goes through; SigLIP's each alone through
the norm and the pooling head, whose attention has one patch to look at then. All of it stays as it was
trained, whatever is done to the tower.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from compressors.errors import UsageError
from connectors.pretrained import load_model, load_pretrained, reset_outputs
from connectors.versions import find_vision_parts

# whole checkpoints, by the `model_type` of their configuration
MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
ADVICE = (
    "give a whole CLIP or SigLIP checkpoint, or choose a compressor that does not compare patches with the "
    "question by it, such as divprune"
)


class TextEncoder(nn.Module):
    """Text model and projections of a CLIP or SigLIP, without its image encoder's blocks.

    config   of the whole, as a dictionary: `build_text_encoder` makes another one of it
    dim      E, channels of the space that text and patches share
    """

    def __init__(self, model: Any):
        super().__init__()
        self.config: dict[str, Any] = model.config.to_dict()
        parts: Any = find_vision_parts(model)
        parts.embeddings = nn.Identity()  # its patches come from the tower
        if hasattr(model, "visual_projection"):
            parts.pre_layrnorm = nn.Identity()
            self.dim: int = model.config.projection_dim
        else:
            self.dim = model.config.vision_config.hidden_size
        self.model = model
        super().requires_grad_(False)

    @property
    def patch_dim(self) -> int:
        """C, channels of the tower's patches."""
        width: int = self.model.config.vision_config.hidden_size
        return width

    @property
    def length(self) -> int:
        """L, tokens of a question."""
        length: int = self.model.config.text_config.max_position_embeddings
        return length

    def train(self, mode: bool = True) -> "TextEncoder":  # noqa: ARG002
        return super().train(False)

    @torch.no_grad()
    def encode_text(self, ids: Tensor) -> Tensor:
        """Tokens (n, L) of `TextTokenizer` -> (n, E). Padding stands behind the token that CLIP reads, and
        SigLIP was trained with it."""
        output = self.model.get_text_features(input_ids=ids)
        embeddings: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return embeddings

    @torch.no_grad()
    def project_patches(self, patches: Tensor) -> Tensor:
        """(..., C) of the tower -> (..., E)."""
        parts: Any = find_vision_parts(self.model)
        states = parts.post_layernorm(patches.to(parts.post_layernorm.weight.dtype))
        if hasattr(self.model, "visual_projection"):
            projected: Tensor = self.model.visual_projection(states)
            return projected
        alone = states.reshape(-1, 1, states.shape[-1])
        pooled: Tensor = parts.head(alone)
        return pooled.view(*states.shape[:-1], self.dim)


def cut_vision(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the model actually built, without blocks of the image encoder."""
    cut: Any = copy.deepcopy(config)
    cut.vision_config.num_hidden_layers = 0
    for part in (cut, cut.vision_config, cut.text_config):
        reset_outputs(part)
    return cut


def build_text_encoder(config: dict[str, Any] | PreTrainedConfig) -> TextEncoder:
    """One with random weights, also under `torch.device("meta")`. `config`: of a whole CLIP or SigLIP, an
    object or a dictionary."""
    if isinstance(config, dict):
        config = AutoConfig.for_model(**config)
    model_class = getattr(transformers, MODELS[config.model_type])
    return TextEncoder(model_class(cut_vision(config))).eval()


def read_text_config(source: str | Path, where: str) -> PreTrainedConfig:
    """The configuration of a whole checkpoint, a folder or of the hub. UsageError, from `where`, for one
    without a text encoder."""
    if str(source).startswith("open_clip:"):
        raise UsageError(
            f"{where}: text encoders are those of transformers' CLIP and SigLIP, none of open_clip; {ADVICE}"
        )
    config = load_pretrained(AutoConfig, source, where, ADVICE)
    if config.model_type not in MODELS:
        raise UsageError(f"{where}: a '{config.model_type}' has no text encoder of its own; {ADVICE}")
    assert isinstance(config, PreTrainedConfig)  # AutoConfig's
    return config


def load_text_encoder(source: str | Path, where: str, dtype: torch.dtype | None = None) -> TextEncoder:
    """The text encoder of a whole checkpoint, in eval mode. UsageError, from `where`, for one without, and
    for weights that are missing or unreadable."""
    config = cut_vision(read_text_config(source, where))
    model_class = getattr(transformers, MODELS[config.model_type])
    options: dict[str, Any] = {"config": config, "dtype": dtype or "auto"}
    model = load_model(model_class, source, where, "save the whole model there again", **options)
    return TextEncoder(model).eval()
