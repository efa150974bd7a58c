"""A model as something whose cost is asked: its parts, its inputs from pictures, its language model."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from einops import rearrange
from PIL.Image import Image
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from connectors.query_module import list_insertions
from connectors.tiling import Tiling
from connectors.versions import CACHE
from experiments.config.schema import Config
from experiments.efficiency.timing import NO_METHODS, PartMethod, PartMethods
from experiments.models.random_model import make_random_prompt, split_text_tokens
from llm_adapters.images import image_pixels, image_processor, stack_images
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.pruning.attention import PRUNING_CONTEXT
from llm_adapters.pruning.prompt import make_sized_prompt

TOWER = "vision tower"
COMPRESSOR = "compressor"
PROJECTOR = "projector"
QUERY_PART = "query module"
LLM = "language model"
GRAPHS_OF_LAYER = 4  # an empty cache and a filled one, one length of input and any
PixelInputs = dict[str, Tensor]
PictureRows = Sequence[Sequence[Image]]  # of each row


class CostSubject:
    """Base class.

    label          how a table calls it
    note           what it was built from
    model          with weights, or on the meta device for counting
    parts          the modules of each part, in the order of a forward pass; absent ones are left out
    methods        what parts compute outside the forward passes of their modules
    query_tokens   of a turn
    """

    methods: PartMethods = NO_METHODS

    def __init__(
        self,
        label: str,
        model: PreTrainedModel,
        parts: Mapping[str, Sequence[nn.Module]],
        query_tokens: int = 0,
        note: str = "",
    ):
        self.label = label
        self.model = model
        self.parts = dict(parts)
        self.query_tokens = query_tokens
        self.note = note

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

    def list_parameters(self) -> list[nn.Parameter]:
        """Those that it runs with, each once."""
        return list(self.model.parameters())

    @property
    def attention(self) -> str:
        """The implementation of attention, as transformers names it; several where parts differ."""
        names = set()
        # tower and LLM have configurations of their own, and may differ
        for module in self.model.modules():
            config = getattr(module, "config", None)
            config = getattr(config, "slothkit_original", config)  # below a pruner's scoring
            name = getattr(config, "_attn_implementation", None)
            if name:
                names.add(name)
        return ", ".join(sorted(names))

    @property
    def llm_width(self) -> int:
        """D, the language model's."""
        return cast(nn.Embedding, self.model.get_input_embeddings()).embedding_dim

    def compile_layers(self, backend: str = "inductor") -> None:
        """torch.compile of each layer of tower and LLM, in place, at its first call. A layer that is not
        compiled after all is an error, since its time would be another's."""
        layers: list[nn.Module] = []
        for part in (TOWER, LLM):
            for module in self.parts.get(part, []):
                # a tower may have a text encoder of more layers beside its backbone
                layers += find_longest_list(getattr(module, "backbone", module))
        # a graph of a layer with a cache is for its place in the cache alone: all layers of all models that
        # are measured come to the same lines of code, and there the usual limit is 8 graphs
        settings = torch._dynamo.config
        settings.recompile_limit += GRAPHS_OF_LAYER * len(layers)
        settings.accumulated_recompile_limit += GRAPHS_OF_LAYER * len(layers)
        settings.fail_on_recompile_limit_hit = True
        for layer in layers:
            layer.compile(backend=backend)


def find_longest_list(module: nn.Module) -> Sequence[nn.Module]:
    """The layers of a tower or an LLM: the longest list of modules in it."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


class CellSubject(CostSubject):
    """A model of this project: a cell's. `size`: the side of the images that its tower takes, in pixels."""

    model: FlashSlothForConditionalGeneration

    def __init__(
        self, label: str, config: Config, model: FlashSlothForConditionalGeneration, size: int, note: str = ""
    ):
        super().__init__(label, model, list_cell_parts(model, config.blind), model.num_queries, note)
        self.methods = list_cell_methods(model, config.blind)
        self.blind = config.blind
        self.size = size
        self.tiling = Tiling(config.tiles("test"), size, config.image.layout)
        self.processor = image_processor(model.vision_tower, size)

    def prepare_pixels(self, pictures: PictureRows) -> PixelInputs:
        if self.blind:
            return {}
        rows = [image_pixels(self.processor, row, self.tiling) for row in pictures]
        return {"pixel_values": stack_images(rows)}

    def list_parameters(self) -> list[nn.Parameter]:
        if self.blind:  # its tower and projector are there, and never run
            return list(self.model.language_model.parameters())
        return super().list_parameters()

    def count_crops(self, pixels: PixelInputs) -> int:
        """Of a row."""
        if self.blind:
            return 0
        return pixels["pixel_values"].shape[1]

    def count_visual_tokens(self, pixels: PixelInputs) -> int:
        if self.blind:
            return 0
        rows, crops = pixels["pixel_values"].shape[:2]
        return rows * crops * self.model.num_image_tokens(self.size, self.size)

    def prompt(self, pixels: PixelInputs, rows: int, text: int) -> dict[str, Tensor]:
        prompt = make_random_prompt(self.model, self.count_crops(pixels), self.size, rows, text)
        del prompt["labels"]
        return prompt

    def encode_images(self, pixels: PixelInputs, rows: int, tokens: int, text: int) -> None:
        if self.blind:
            return
        model = self.model
        # the steps of the model's own forward pass up to its LLM, on tensors of the same shapes
        features = model.get_image_features(pixels["pixel_values"])  # (B, I, H, W, C)
        crops = rearrange(features, "b i h w c -> (b i) h w c")
        words = None
        if model.compressor.needs_text:
            _, question, _ = split_text_tokens(text)
            words = torch.empty(len(crops), question, self.llm_width)
        elif model.compressor.needs_tower_text:
            encoder = model.vision_tower.text_encoder
            assert encoder is not None  # the skeleton has been given one
            embedded = encoder.encode_text(torch.zeros(rows, encoder.length).long())
            words = embedded.repeat_interleave(len(crops) // rows, 0).unsqueeze(1)
        model.projector(model.compressor(model.add_projected(crops), words))
        if model.query_module is None:
            return
        output = features[..., : model.vision_tower.dim]  # without levels for the compressor
        patches = rearrange(output, "b i h w c -> b (i h w) c")
        queries = model.num_queries
        inputs = (
            torch.empty(rows, tokens, self.llm_width),  # hidden states
            torch.zeros(rows, queries).long(),  # where the query tokens are
            torch.ones(rows, queries, tokens).bool(),  # the tokens that each of them sees
            patches,
            torch.ones(rows, queries, patches.shape[1]).bool(),  # and the patches
        )
        options = {}
        if model.query_module.prefuses:
            options["visual_mask"] = torch.ones(rows, queries, tokens).bool()
        # once for each layer that it is inserted at
        for insertion, _ in list_insertions(model.query_module):
            model.query_module(*inputs, insertion, **options)

    def language_model(
        self, embeds: Tensor, cache: Cache | None = None, keep: int = 1, visual: int = 0
    ) -> Cache:
        prompt = None
        if visual and cache is None:  # what is dropped is dropped in the prefill
            prompt = make_sized_prompt(embeds, visual)
        run, cache = self.model.start_pruning(prompt, embeds.shape[1], cache, use_cache=True)
        context = {}
        if run is not None:
            context[PRUNING_CONTEXT] = run
        output = self.model.language_model(
            inputs_embeds=embeds, logits_to_keep=keep, use_cache=True, **{CACHE: cache}, **context
        )
        return output[CACHE]


def list_cell_parts(model: FlashSlothForConditionalGeneration, blind: bool) -> dict[str, list[nn.Module]]:
    """The parts that a cell's model uses: a blind one the language model alone."""
    if blind:
        return {LLM: [model.language_model]}
    parts: dict[str, list[nn.Module]] = {
        TOWER: [model.vision_tower],
        COMPRESSOR: [model.compressor],
        PROJECTOR: [model.projector],
    }
    if model.query_module is not None:
        parts[QUERY_PART] = [model.query_module]
    parts[LLM] = [model.language_model]
    return parts


def list_cell_methods(model: FlashSlothForConditionalGeneration, blind: bool) -> PartMethods:
    """What a cell's tower computes beside its forward pass: cues of its patches, and the question by its text
    encoder."""
    if blind:
        return NO_METHODS
    tower = model.vision_tower
    methods = [PartMethod(tower, "extract_features")]
    if tower.text_encoder is not None:
        methods.append(PartMethod(tower.text_encoder, "encode_text"))
    return {TOWER: methods}
