"""The text encoder that was trained together with a tower, and what takes the tower's patches into its space.

    question -> ids (n, L) -> text model -> (n, E)          patches (..., C) -> norm -> projection -> (..., E)

CLIP's patches go through the norm and the projection that its CLS goes through; SigLIP's each alone through
the norm and the pooling head, whose attention has one patch to look at then. All of it stays as it was
trained, whatever is done to the tower. It computes in its weights' precision, without autocast: patches whose
features were cached and a question that comes later are compared, and what is chosen is not to depend on it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from compressors.selection import without_autocast
from connectors.versions import find_vision_parts

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
        with without_autocast(ids.device.type):
            output = self.model.get_text_features(input_ids=ids)
        embeddings: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return embeddings

    @torch.no_grad()
    def project_patches(self, patches: Tensor) -> Tensor:
        """(..., C) of the tower -> (..., E)."""
        parts: Any = find_vision_parts(self.model)
        with without_autocast(patches.device.type):
            states = parts.post_layernorm(patches.to(parts.post_layernorm.weight.dtype))
            if hasattr(self.model, "visual_projection"):
                projected: Tensor = self.model.visual_projection(states)
                return projected
            alone = states.reshape(-1, 1, states.shape[-1])
            pooled: Tensor = parts.head(alone)
        return pooled.view(*states.shape[:-1], self.dim)
