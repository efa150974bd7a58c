"""The text encoder and its tokenizer that a cell's tower has beside it, where a compressor compares patches
with the question by it. Both come from `tower.source`."""

from functools import partial

from compressors.cues import JOINT
from connectors.towers.base import VisionTower
from connectors.towers.build_text import build_text_encoder, load_text_encoder, read_text_config
from connectors.towers.text import TextEncoder
from connectors.towers.text_tokenizer import TextTokenizer, load_text_tokenizer
from experiments.config import signatures
from experiments.config.scaling import read_widths
from experiments.config.schema import Config
from experiments.config.sources import resolve_source
from llm_adapters.modeling import FlashSlothForConditionalGeneration


def needs_text_encoder(config: Config, name: str) -> bool:
    """Whether a compressor of the cell compares patches with the question by the tower's text encoder."""
    return JOINT in signatures.compressors().find_needed_cues(
        name, config.knobs(name), partial(read_widths, config)
    )


def list_reading_compressors(config: Config) -> list[str]:
    """Those of the cell that do so: the trained one, the evaluated one, both or none."""
    if config.blind:
        return []
    names = dict.fromkeys([config.compressor_name, config.evaluated_compressor])
    return [name for name in names if needs_text_encoder(config, name)]


def describe_source(config: Config, name: str) -> str:
    """Where an error is, for a compressor of that name."""
    return f"compressor '{name}', tower.source={config.tower.source}"


def load_cell_text_encoder(config: Config, name: str) -> TextEncoder:
    """The pretrained one for a compressor of that name. UsageError where the source has none."""
    return load_text_encoder(resolve_source(config.tower.source), describe_source(config, name))


def load_question_tokenizer(config: Config, name: str) -> TextTokenizer | None:
    """For a compressor of that name; None where it needs none. UsageError where the source has none."""
    if not needs_text_encoder(config, name):
        return None
    return load_text_tokenizer(resolve_source(config.tower.source), describe_source(config, name))


def add_bare_text_encoder(config: Config, tower: VisionTower) -> None:
    """Gives a tower without weights the text encoder that compressors of the cell want. UsageError where the
    source has none, or no tokenizer for it."""
    for name in list_reading_compressors(config):
        source = resolve_source(config.tower.source)
        where = describe_source(config, name)
        tower.add_text_encoder(build_text_encoder(read_text_config(source, where)))
        load_text_tokenizer(source, where)


def add_evaluated_text_encoder(config: Config, model: FlashSlothForConditionalGeneration) -> None:
    """Gives a trained model the text encoder that the compressor wants which it is evaluated with."""
    name = config.evaluated_compressor
    if model.vision_tower.text_encoder is None and needs_text_encoder(config, name):
        encoder = load_cell_text_encoder(config, name)
        model.vision_tower.add_text_encoder(encoder.to(model.device, model.dtype))
