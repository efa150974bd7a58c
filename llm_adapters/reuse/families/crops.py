"""Families whose images, or crops of images, all have the tower's own size: LLaVA and its like."""

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from llm_adapters.reuse.families.family import (
    ModelFamily,
    PatchGrid,
    VideoFrames,
    read_feature_layer,
    read_patch_size,
)

# of the families that came with transformers 5.24's names; older versions were not tried
TRIED = "5.24"


class IdeficsConnector(Protocol):
    """Idefics' reduction (pixel shuffle) and projector in one."""

    modality_projection: nn.Module


class GemmaProjector(Protocol):
    """Gemma's reduction (average pooling) and projector in one: a norm and a matrix (C, D)."""

    mm_soft_emb_norm: nn.Module
    mm_input_projection_weight: Tensor


class GatedProjector(Protocol):
    """Cohere's reduction (pixel shuffle) and projector in one, whose first layer's second half is a gate."""

    linear_1: nn.Module
    act: nn.Module
    linear_2: nn.Module


class PooledProjector(Protocol):
    """PerceptionLM's projector and reduction (average pooling, behind it) in one."""

    linear_1: nn.Module
    gelu: nn.Module
    linear_2: nn.Module


def pass_features(module: nn.Module, features: Tensor, *levels: Tensor) -> Tensor:  # noqa: ARG001
    """Patch features (..., C) with a compressor's levels (..., C) beside them in the channels."""
    return torch.cat([features, *levels], -1)


def apply_projector(projector: nn.Module, tokens: Tensor) -> Tensor:
    """A projector that is nothing else."""
    return projector(tokens)


def apply_modality_projection(connector: IdeficsConnector, tokens: Tensor) -> Tensor:
    """What comes after the pixel shuffle in Idefics' connector."""
    return connector.modality_projection(tokens)


def apply_gemma_projection(projector: GemmaProjector, tokens: Tensor) -> Tensor:
    """What comes after the pooling in Gemma's projector."""
    return projector.mm_soft_emb_norm(tokens) @ projector.mm_input_projection_weight


def read_gemma_width(projector: GemmaProjector) -> int:
    """Rows of Gemma's projection matrix."""
    return projector.mm_input_projection_weight.shape[0]


def apply_gated_projection(projector: GatedProjector, tokens: Tensor) -> Tensor:
    """What comes after the pixel shuffle in the projectors of Aya Vision, which has a norm, and Cohere 2."""
    norm = getattr(projector, "layernorm", None)
    if norm is not None:
        tokens = norm(tokens)
    values, gate = projector.linear_1(tokens).chunk(2, dim=-1)
    return projector.linear_2(projector.act(gate) * values)


def apply_pooled_projection(projector: PooledProjector, tokens: Tensor) -> Tensor:
    """What comes before the pooling in PerceptionLM's projector."""
    return projector.linear_2(projector.gelu(projector.linear_1(tokens)))


def mix_visual_words(base: Any, tokens: Tensor) -> Tensor:
    """What comes after the windows in Ovis 2: shares of visual words, and the words' embeddings."""
    tower = base.vision_tower
    logits = tower.head_norm(tower.head_linear(tokens))
    how = tower.config.tokenize_function
    if how == "gumbel_argmax":
        shares = functional.gumbel_softmax(logits, dim=-1, hard=True)
    elif how == "st_argmax":
        soft = logits.softmax(-1)
        hard = functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(soft)
        shares = hard + soft - soft.detach()  # the choice, with the gradient of the shares
    else:
        shares = logits.softmax(-1)
    # the others mark where images begin and end
    words = base.visual_embeddings_table.weight[: shares.shape[-1]]
    return shares @ words


def take_patches(table: nn.Embedding, reduced: Tensor, features: Tensor, *levels: Tensor) -> Tensor:
    """Ovis 2's patches (n, patches, C) in the place of words' embeddings; its markers' ids as ever."""
    if not reduced.is_floating_point():
        return functional.embedding(reduced, table.weight)
    return torch.cat([features, *levels], -1)


def make_patch_maps(
    base: PreTrainedModel,
    entry: Tensor,
    arguments: Mapping[str, Any],
    index: int,  # noqa: ARG001
) -> Tensor:
    """(..., patches, C), perhaps with a CLS token before them -> (n, H, W, C)."""
    return cut_patch_maps(entry, arguments, read_patch_size(base))


def cut_patch_maps(entry: Tensor, arguments: Mapping[str, Any], patch_size: tuple[int, int]) -> Tensor:
    """The same with the size of a patch in pixels."""
    pixel_height, pixel_width = arguments["pixel_values"].shape[-2:]
    height = pixel_height // patch_size[0]
    width = pixel_width // patch_size[1]
    # whole crops, counted from the end: a CLS token before them is left out
    patches = entry.shape[-2] // (height * width) * height * width
    first = entry.shape[-2] - patches
    maps = entry[..., first:, :].flatten(0, -2)
    return rearrange(maps, "(n h w) c -> n h w c", h=height, w=width)


def make_timm_maps(
    base: Any,
    entry: Tensor,
    arguments: Mapping[str, Any],
    index: int,  # noqa: ARG001
) -> Tensor:
    """The same for a vision transformer of timm."""
    return cut_patch_maps(entry, arguments, base.vision_tower.timm_model.patch_embed.patch_size)


def flatten_crops(
    base: PreTrainedModel,  # noqa: ARG001
    tokens: Tensor,
    arguments: Mapping[str, Any],  # noqa: ARG001
    index: int,  # noqa: ARG001
    grid: PatchGrid | None,  # noqa: ARG001
) -> Tensor:
    """(crops, N, D) -> (crops * N, D)."""
    return tokens.flatten(0, 1)


# Crops of one size, and a projector of several layers that is nothing else: what most families differ from.
CROPS = ModelFamily(
    projector="multi_modal_projector",
    width=attrgetter("linear_1.in_features"),
    project=apply_projector,
    raw={"multi_modal_projector": pass_features},
    maps=make_patch_maps,
    pack=flatten_crops,
)

# A CLIP or SigLIP tower and two linear layers; no reduction of its own: only the projector is in the way.
LAYERED_CROPS = replace(CROPS, feature_layer=read_feature_layer)
LLAVA = replace(LAYERED_CROPS, hands_options=True)

# As LLaVA's, of several hidden states of the tower.
VIP_LLAVA = replace(LAYERED_CROPS, since=TRIED)

# The reduction is a pixel shuffle, a method of the model, before the projector.
INTERNVL = replace(CROPS, raw={**CROPS.raw, "pixel_shuffle": pass_features})

# Idefics 3 and SmolVLM: the reduction, a pixel shuffle, is in the connector. An entry is a row of images.
IDEFICS = replace(
    CROPS,
    projector="connector",
    width=attrgetter("modality_projection.proj.in_features"),
    project=apply_modality_projection,
    raw={"connector": pass_features},
    language_model="text_model",
    tower="vision_model",
)

# One linear layer and no reduction of its own.
PALIGEMMA = replace(
    LAYERED_CROPS,
    width=attrgetter("linear.in_features"),
    since="5.4",  # before, it scales by itself
)

# The reduction, average pooling, is in the projector, whose weights are a bare matrix.
GEMMA3 = replace(LAYERED_CROPS, width=read_gemma_width, project=apply_gemma_projection)

# Aya Vision and Cohere 2 Vision: the reduction, a pixel shuffle, is in the projector.
COHERE = replace(
    LAYERED_CROPS,
    project=apply_gated_projection,
    processor="runs",
    own_rate=attrgetter("config.downsample_factor"),
    keeps_raw=True,
    since=TRIED,
)

# Janus and DeepSeek-VL: a SigLIP-like tower and a perceptron, which are called otherwise.
JANUS = replace(
    CROPS,
    projector="aligner",
    width=attrgetter("fc1.in_features"),
    raw={"aligner": pass_features},
    tower="vision_model",
    since=TRIED,
)
DEEPSEEK_VL = replace(JANUS, width=attrgetter("linear1.in_features"), feature_layer=read_feature_layer)

# Ovis 2: the reduction, windows of patches, is in the tower, before a head that gives each token its shares
# of visual words; the LLM reads the words' embeddings, mixed by them.
OVIS2 = replace(
    CROPS,
    projector="",  # the head is the tower's, the words are the model's
    width=attrgetter("vision_tower.head_linear.in_features"),
    project=mix_visual_words,
    raw={"visual_embeddings_table": take_patches},
    features="vision_tower.transformer.rms_norm",
    since=TRIED,
)

# A tower of timm, whose configuration tells its sizes elsewhere; the reduction is behind the projector.
PERCEPTION_LM = replace(
    CROPS,
    project=apply_pooled_projection,
    maps=make_timm_maps,
    processor="runs",
    own_rate=attrgetter("config.projector_pooling_ratio"),
    dim=attrgetter("vision_tower.timm_model.embed_dim"),
    grid=attrgetter("vision_tower.timm_model.patch_embed.grid_size"),
    patch_size=attrgetter("vision_tower.timm_model.patch_embed.patch_size"),
    blocks=attrgetter("timm_model.blocks"),
    videos=VideoFrames(make_timm_maps, flatten_crops),
    since=TRIED,
)
