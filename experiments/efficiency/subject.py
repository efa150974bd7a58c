"""A model as something whose cost is asked: its parts, its inputs from pictures, its language model."""

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from PIL.Image import Image
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from connectors.query_module import list_insertions
from connectors.tiling import Tiling
from connectors.versions import CACHE
from experiments.config.schema import Config
from experiments.models.random_model import make_random_prompt
from llm_adapters.images import image_pixels, image_processor, stack_images
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.pruning.attention import PRUNING_CONTEXT as PRUNING
from llm_adapters.pruning.prompt import make_sized_prompt

TOWER, COMPRESSOR, PROJECTOR, QUERY_PART, LLM = (
    "vision tower",
    "compressor",
    "projector",
    "query module",
    "language model",
)
MODEL_PARTS = (TOWER, COMPRESSOR, PROJECTOR, QUERY_PART, LLM)
PixelInputs = dict[str, Tensor]
PictureRows = Sequence[Sequence[Image]]  # of each row


class CostSubject:
    """Base class.

    label          how a table calls it
    note           what it was built from
    model          with weights, or on the meta device for counting
    parts          the modules of each part, in the order of `MODEL_PARTS`; absent ones are left out
    query_tokens   of a turn
    """

    def __init__(
        self,
        label: str,
        model: PreTrainedModel,
        parts: Mapping[str, Sequence[nn.Module]],
        query_tokens: int = 0,
        note: str = "",
    ):
        self.label, self.model, self.note = label, model, note
        self.parts, self.query_tokens = dict(parts), query_tokens

    def prepare_pixels(self, pictures: PictureRows) -> PixelInputs:
        """Pictures, as many in each row, as the model's image processor prepares them, on the CPU."""
        raise NotImplementedError

    def count_visual_tokens(self, pixels: PixelInputs) -> int:
        """Visual tokens of all rows together."""
        raise NotImplementedError

    def prompt(self, pixels: PixelInputs, rows: int, text: int) -> dict[str, Tensor]:
        """What `generate` takes beside the pixels: `rows` rows of `text` text tokens each, with all
        placeholders, on the CPU."""
        raise NotImplementedError

    def encode_images(self, pixels: PixelInputs, rows: int, tokens: int, text: int) -> None:
        """Everything that a prefill of `rows` rows of `tokens` tokens computes beside the language model; for
        a model on the meta device."""
        raise NotImplementedError

    def language_model(
        self, embeds: Tensor, cache: Cache | None = None, keep: int = 1, visual: int = 0
    ) -> Cache:
        """(B, T, D) through all decoder layers, and the logits of the `keep` last tokens (0: all); the cache
        after it. `visual`: so many tokens of a row are visual, which matters where some are dropped."""
        raise NotImplementedError

    @property
    def attention(self) -> str:
        """The implementation of attention, as transformers names it; several where parts differ."""
        configs = (getattr(module, "config", None) for module in self.model.modules())
        own = (getattr(config, "slothkit_original", config) for config in configs)  # below a pruner's scoring
        return ", ".join(
            sorted({name for config in own if (name := getattr(config, "_attn_implementation", None))})
        )

    @property
    def llm_width(self) -> int:
        """D, the language model's."""
        return self.model.get_input_embeddings().embedding_dim


class CellSubject(CostSubject):
    """A model of this project: a cell's."""

    model: FlashSlothForConditionalGeneration

    def __init__(
        self, label: str, config: Config, model: FlashSlothForConditionalGeneration, size: int, note: str = ""
    ):
        own = (
            model.vision_tower,
            model.compressor,
            model.projector,
            model.query_module,
            model.language_model,
        )
        parts = {name: [part] for name, part in zip(MODEL_PARTS, own) if part is not None}
        super().__init__(label, model, {LLM: parts[LLM]} if config.blind else parts, model.num_queries, note)
        self.blind, self.size = config.blind, size
        self.tiling = Tiling(config.tiles("test"), size, config.image.layout)
        self.processor = image_processor(model.vision_tower, size)

    def prepare_pixels(self, pictures: PictureRows) -> PixelInputs:
        if self.blind:
            return {}
        rows = [image_pixels(self.processor, row, self.tiling) for row in pictures]
        return {"pixel_values": stack_images(rows)}

    def count_crops(self, pixels: PixelInputs) -> int:
        """Of a row."""
        return 0 if self.blind else pixels["pixel_values"].shape[1]

    def count_visual_tokens(self, pixels: PixelInputs) -> int:
        if self.blind:
            return 0
        return pixels["pixel_values"].shape[:2].numel() * self.model.num_image_tokens(self.size, self.size)

    def prompt(self, pixels: PixelInputs, rows: int, text: int) -> dict[str, Tensor]:
        made = make_random_prompt(self.model, self.count_crops(pixels), self.size, rows, text)
        del made["labels"]
        return made

    def encode_images(self, pixels: PixelInputs, rows: int, tokens: int, text: int) -> None:
        if self.blind:
            return
        model = self.model
        features = model.get_image_features(pixels["pixel_values"])
        flat = rearrange(features, "b i h w c -> (b i) h w c")
        words = torch.empty(len(flat), text, self.llm_width) if model.compressor.needs_text else None
        model.projector(model.compressor(flat, words))
        if model.query_module is None:
            return
        output = features[..., : model.vision_tower.dim]  # without levels for the compressor
        patches, asked = rearrange(output, "b i h w c -> b (i h w) c"), model.num_queries
        inputs = (
            torch.empty(rows, tokens, self.llm_width),
            torch.zeros(rows, asked).long(),
            torch.ones(rows, asked, tokens).bool(),
            patches,
            torch.ones(rows, asked, patches.shape[1]).bool(),
        )
        for insertion, _ in list_insertions(model.query_module):
            model.query_module(*inputs, insertion)

    def language_model(
        self, embeds: Tensor, cache: Cache | None = None, keep: int = 1, visual: int = 0
    ) -> Cache:
        prompt = make_sized_prompt(embeds, visual) if visual and cache is None else None
        run, cache = self.model.start_pruning(prompt, embeds.shape[1], cache, use_cache=True)
        context = {} if run is None else {PRUNING: run}
        found = self.model.language_model(
            inputs_embeds=embeds, logits_to_keep=keep, use_cache=True, **{CACHE: cache}, **context
        )
        return found[CACHE]
