"""From a cell's configuration to a model and its processor."""

import copy
import logging
import warnings
from dataclasses import asdict
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from compressors.errors import UsageError
from compressors.registry import naming_part
from connectors.tiling import Tiling
from connectors.towers.base import VisionTower
from connectors.towers.build import build_tower, load_tower
from experiments.config.schema import Config
from experiments.config.sources import resolve_source
from experiments.models import contract, pretrained, tower_text
from llm_adapters.conversation import IMAGE, QUERY
from llm_adapters.images import image_processor
from llm_adapters.modeling import FlashSlothConfig, FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor, find_token_id


def build_model(config: Config) -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    """Pretrained tower and LLM, everything else new from `config.seed`. UsageError for what does not fit."""
    source = resolve_source(config.tower.source)
    tower = load_tower(source, config.tower.select_layer, dtype=torch.float32)
    name = config.compressor_name
    if not config.blind and tower_text.needs_text_encoder(config, name):
        tower.add_text_encoder(tower_text.load_cell_text_encoder(config, name))
    llm = pretrained.load_llm(config)
    tokenizer = pretrained.load_tokenizer(config)
    end = find_token_id(tokenizer, config.prompt.end)
    # the placeholders need no row, visual and query tokens replace them; the end token is generated
    if end >= llm.get_input_embeddings().num_embeddings:
        torch.manual_seed(config.seed)  # transformers draws the new row
        llm.resize_token_embeddings(end + 1)
    torch.manual_seed(config.seed)
    composed = compose_model_config(config, tower.config, llm.config, tokenizer)
    model = FlashSlothForConditionalGeneration(composed, tower, llm)
    if model.query_module is not None:
        # EmbQ's query tokens start at the dot's embedding (FlashSloth, arXiv 2412.04317)
        model.query_module.initialise(find_dot_embedding(model, tokenizer))
    # answers end at the template's end token
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, make_processor(config, model, tokenizer)


def find_dot_embedding(
    model: FlashSlothForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """What the LLM reads for a dot, (D)."""
    dot = tokenizer(" .", add_special_tokens=False)["input_ids"][-1]
    table: Any = model.get_input_embeddings()
    # called, not indexed: Gemma's scales its rows
    embedding: Tensor = table(torch.tensor(dot, device=table.weight.device)).detach().clone()
    return embedding


def compose_model_config(
    config: Config,
    vision: PreTrainedConfig,
    text: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> FlashSlothConfig:
    """The whole model's configuration, from those of its tower (`vision`) and LLM (`text`) and from the cell.
    Without a tokenizer the placeholders have no ids yet."""
    compressor = config.compressor_name
    projector = config.projector
    if config.blind:
        # an image path that nothing takes, so that a blind cell is the same class of model
        compressor = "identity"
        projector = "auto"
    projector_knobs = None
    if config.projector != "auto":
        projector_knobs = config.knobs(config.projector)
    image_token_id = None
    query_token_id = None
    if tokenizer is not None:
        image_token_id = find_token_id(tokenizer, IMAGE)
        query_token_id = find_token_id(tokenizer, QUERY)
    return FlashSlothConfig(
        # copies: a composite configuration resets its parts' attention implementation
        vision_config=copy.deepcopy(vision),
        text_config=copy.deepcopy(text),
        select_layer=config.tower.select_layer,
        compressor=compressor,
        compressor_knobs=config.knobs(config.compressor_name),
        projector=projector,
        projector_knobs=projector_knobs,
        query_module=config.query_module,
        query_module_knobs=config.knobs(config.query_module or ""),
        image_token_id=image_token_id,
        query_token_id=query_token_id,
        prompt=asdict(config.prompt),
    )


def make_processor(
    config: Config, model: FlashSlothForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> FlashSlothProcessor:
    """Token counts as the compressor makes them; a blind cell's images have none."""
    images: Any = image_processor(model.vision_tower, config.image.size)
    tokens = 0
    if not config.blind:
        tokens = model.num_image_tokens(images.size["height"], images.size["width"])
    processor = FlashSlothProcessor(
        images,
        tokenizer,
        image_tokens=tokens,
        tiles=config.image.tiles,
        num_queries=model.num_queries,
        prompt=asdict(config.prompt),
        layout=config.image.layout,
    )
    if not config.blind:
        processor.question_tokenizer = tower_text.load_question_tokenizer(config, config.compressor_name)
    return processor


def make_tiling(config: Config, size: int) -> Tiling:
    """How the cell's images of `size` pixels a side are cut."""
    return Tiling(config.image.tiles, size, config.image.layout)


def silence_libraries() -> None:
    """Let libraries tell errors alone: a command's own progress is what shows."""
    # bitsandbytes, which peft imports where it is installed, warns of a kernel that nothing here runs
    for name in ("lightning.pytorch", "lightning.fabric", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def check_model_config(config: Config) -> FlashSlothForConditionalGeneration:
    """The cell's model without weights. UsageError for what only the sizes of its parts can tell: rate
    against grid, insertion against depth, heads against widths; and for backbones without weights or
    tokenizer. No weights are read."""
    with torch.device("meta"):
        model, size = build_skeleton(config)
    pretrained.check_tower(config.tower.source)
    pretrained.check_llm(config, model.config.text_config)
    if not config.blind:
        with naming_part("compressor", config.evaluated_compressor, type(model.compressor)):
            model.num_image_tokens(size, size)
        contract.check_own_compressor(config, model, size)
    return model


def pick_scale(config: Config, model: FlashSlothForConditionalGeneration) -> bool:
    """Settle the scale that is evaluated, if one is asked for; whether it is. UsageError for a scale that the
    compressor was not trained at."""
    if not config.evaluate.scale or config.blind:
        return False
    try:
        model.compressor.pick(config.evaluate.scale)
    except UsageError as error:
        raise UsageError(f"evaluate.{error}") from error
    return True


def replace_compressor(config: Config, model: FlashSlothForConditionalGeneration) -> bool:
    """Put the evaluated compressor in the place of the trained one, if there is one; whether there is."""
    name = config.evaluate.compressor
    if name is None or config.blind:
        return False
    tower_text.add_evaluated_text_encoder(config, model)
    try:
        model.set_compressor(name, **config.knobs(name))
    except UsageError as error:
        raise UsageError(f"evaluate.compressor={name}: {error}") from error
    return True


def build_skeleton(config: Config) -> tuple[FlashSlothForConditionalGeneration, int]:
    """The cell's model without weights, and its image size. Call under `torch.device("meta")`."""
    vision = pretrained.load_vision_config(config.tower.source)
    text = pretrained.load_llm_config(config.llm.source)
    with pretrained.naming_backbone(f"tower.source={config.tower.source}"):
        tower: VisionTower = build_tower(vision, config.tower.select_layer)
    tower_text.add_bare_text_encoder(config, tower)
    with pretrained.naming_backbone(f"llm.source={config.llm.source}"):
        llm = AutoModelForCausalLM.from_config(text)
    model = FlashSlothForConditionalGeneration(compose_model_config(config, vision, text), tower, llm)
    replace_compressor(config, model)
    pick_scale(config, model)
    if config.prune is not None:
        model.set_pruner(config.prune, **config.knobs(config.prune))
    return model, config.image.size or tower.image_size
