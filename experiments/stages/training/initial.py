"""Weights of a trained model as the start of a stage: whether they fit, and how they come into the model."""

from collections.abc import Mapping
from itertools import groupby, islice
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig

from compressors.errors import UsageError, quote
from connectors.pretrained import check_weight_files, load_model, load_pretrained
from connectors.towers.build import load_tower
from experiments.config.schema import Config, TrainedStart
from experiments.config.sources import resolve_source
from experiments.config.trained import find_trained_model
from experiments.models import pretrained
from experiments.models.build import find_dot_embedding
from experiments.stages.finite import find_not_finite
from experiments.store.store import NotFinite
from llm_adapters.modeling import FlashSlothConfig, FlashSlothForConditionalGeneration
from llm_adapters.processing import find_token_id

PART_MODULES = {  # a part's name in settings -> in the model
    "tower": "vision_tower",
    "compressor": "compressor",
    "projector": "projector",
    "query_module": "query_module",
    "llm": "language_model",
}
PART_CONFIGS = {"tower": "vision_config", "llm": "text_config"}
TEXT_ENCODER = "vision_tower.text_encoder."  # where a model has one
# What of a backbone's configuration changes what it computes and no tensor's shape, by parts of names
SHAPELESS_SETTINGS = (
    "heads",
    "head_dim",
    "rope",
    "rotary",
    "hidden_act",
    "activation_function",
    "sliding_window",
    "layer_types",
    "softcap",
    "scalar",
    "multiplier",
    "logits_scaling",
    "norm_eps",
)
LISTED_NAMES = 2  # of the tensors of a part that do not fit in one way
ADVICE = "save the model there again"


def check_start(config: Config, model: FlashSlothForConditionalGeneration) -> None:
    """UsageError where the trained model that a cell starts from does not fit it. `model`: the cell's on the
    meta device; its embeddings get the rows that they will have. No weights but a tower's are read."""
    start = config.find_start("finetune")
    if start is None:
        return
    where = f"{start.path}={quote(start.source)}"
    folder = find_trained_model(start.source, config.out, start.path)
    check_weight_files(folder, where)
    saved = build_without_weights(folder, where, ADVICE)
    end = find_token_id(pretrained.load_tokenizer(config), config.prompt.end)
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)  # every LLM's
    if end >= embeddings.num_embeddings:  # as in `build_model`
        model.language_model.resize_token_embeddings(end + 1, mean_resizing=False)
    check_fit(config, start, take_parts(model, start), take_parts(saved, start))
    check_backbones(start, model.config, saved.config)
    check_tower(config, start, folder)


def build_without_weights(folder: Path, where: str, advice: str) -> FlashSlothForConditionalGeneration:
    """A saved model on the meta device, by its configuration. UsageError, from `where`, for one that makes no
    model; `advice` says what to do then."""
    saved_config = load_pretrained(FlashSlothConfig, folder, where, advice)
    with torch.device("meta"), pretrained.naming_backbone(where):
        return FlashSlothForConditionalGeneration(saved_config)


def load_start(config: Config, stage: str, model: FlashSlothForConditionalGeneration) -> None:
    """Put the weights of the trained model that a stage starts from, if it does, into its model."""
    start = config.find_start(stage)
    if start is None:
        return
    where = f"{start.path}={quote(start.source)}"
    folder = find_trained_model(start.source, config.out, start.path)
    saved = load_model(FlashSlothForConditionalGeneration, folder, where, ADVICE, dtype=torch.float32)
    state = take_parts(saved, start)
    check_fit(config, start, take_parts(model, start), state)
    name = find_not_finite(state, state)
    if name is not None:
        raise NotFinite(f"{where}: {name} is not finite; start from another model")
    tokenizer = pretrained.load_tokenizer(config)
    replaced_dot = find_dot_embedding(model, tokenizer)
    model.load_state_dict(state, strict=False)  # the other parts are not in it
    if model.query_module is not None and "query_module" not in start.parts:
        # the query tokens lie around the dot of the LLM that was replaced
        model.query_module.initialise(find_dot_embedding(model, tokenizer) - replaced_dot)


def take_parts(model: FlashSlothForConditionalGeneration, start: TrainedStart) -> dict[str, Tensor]:
    """The state dict of the parts that are taken. A tower's text encoder is never trained and not of them."""
    modules = {PART_MODULES[part] for part in start.parts}
    parts: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if find_module(name) in modules and not name.startswith(TEXT_ENCODER):
            parts[name] = value
    return parts


def find_module(name: str) -> str:
    """The module of the model that a tensor is in."""
    return name.partition(".")[0]


def check_fit(
    config: Config, start: TrainedStart, state: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> None:
    """UsageError that names the tensors in which a model's `state` and what is `saved` differ."""
    reshaped: list[str] = []
    for name in state.keys() & saved.keys():
        if state[name].shape != saved[name].shape:
            shape = tuple(state[name].shape)
            reshaped.append(f"{name} {tuple(saved[name].shape)} instead of {shape}")
    faults = {
        "missing": state.keys() - saved.keys(),
        "unexpected": saved.keys() - state.keys(),
        "of other shape": reshaped,
    }
    words: list[str] = []
    unfit_modules: set[str] = set()
    for fault, names in faults.items():
        if not names:
            continue
        listed: list[str] = []
        for _, part_names in groupby(sorted(names), find_module):
            listed += islice(part_names, LISTED_NAMES)
        text = f"{fault}: {', '.join(listed)}"
        if len(names) > len(listed):
            text += f" and {len(names) - len(listed)} more"
        words.append(text)
        unfit_modules |= set(map(find_module, names))
    if not words:
        return
    fitting_modules = set(map(find_module, state)) - unfit_modules
    fitting = [part for part in start.parts if PART_MODULES[part] in fitting_modules]
    advice = f"take what fits with {start.path}_parts=[{','.join(fitting)}]"
    if not fitting:
        advice = "start from another model"
    raise UsageError(
        f"{start.path}={quote(start.source)}: does not fit compressor={config.compressor} llm.source="
        f"{quote(config.llm.source)}: {'; '.join(words)}; {advice}"
    )


def check_backbones(start: TrainedStart, own: PreTrainedConfig, saved: PreTrainedConfig) -> None:
    """UsageError for a tower or LLM whose weights have the right shapes and another meaning: of other heads,
    positions or activations."""
    for part in start.parts:
        if part not in PART_CONFIGS:
            continue
        own_settings = getattr(own, PART_CONFIGS[part]).to_dict()
        saved_settings = getattr(saved, PART_CONFIGS[part]).to_dict()
        for name in sorted(own_settings.keys() & saved_settings.keys()):
            fixes_meaning = any(word in name for word in SHAPELESS_SETTINGS)
            if fixes_meaning and own_settings[name] != saved_settings[name]:
                raise UsageError(
                    f"{start.path}={quote(start.source)}: {name} of its {part} is {saved_settings[name]}, "
                    f"that of {part}.source is {own_settings[name]}; give the source that it was trained "
                    f"from as {part}.source, or leave {part} out of {start.path}_parts"
                )


def check_tower(config: Config, start: TrainedStart, folder: Path) -> None:
    """UsageError for a tower that was trained on, where the features of `tower.source` are cached."""
    if "tower" not in start.parts or not config.caches_features:
        return
    prefix = f"{PART_MODULES['tower']}."
    state = load_tower(resolve_source(config.tower.source), config.tower.select_layer).state_dict()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  no mapping
                if not name.startswith(prefix):
                    continue
                source_tensor = state.get(name.removeprefix(prefix))
                if source_tensor is None:
                    continue
                saved = file.get_tensor(name)
                if not torch.equal(saved, source_tensor.to(saved.dtype)):
                    parts = [part for part in start.parts if part != "tower"]
                    raise UsageError(
                        f"{start.path}={quote(start.source)}: its tower is not tower.source="
                        f"{quote(config.tower.source)}, whose features are cached ({name} differs); add "
                        f"tower.cache=false, or leave it out with {start.path}_parts=[{','.join(parts)}]"
                    )
