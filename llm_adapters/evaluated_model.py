"""The model that an evaluation harness asks: a saved one, or any MLLM of transformers with a compressor that
needs no training, or a pruner, put into it for this evaluation."""

import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoProcessor

from compressors.errors import UsageError, shorten_reason
from compressors.reading import read_json_object
from compressors.registry import conform, suggest
from connectors.hub import find_folder
from connectors.pretrained import load_model, load_pretrained
from llm_adapters import reuse, saved
from llm_adapters.adapter import llm_sizes
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.pruning.base import registry as pruners
from llm_adapters.reuse.wrapping import PARTS_ATTRIBUTE

NOTHING = ("null", "None", "none")  # what a part may be called that is not there
NOT_NAMED = ""  # of a part that nobody has named; None is the name of none
DOWNLOAD_ADVICE = "download it again"
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


class EvaluatedParts(NamedTuple):
    """What is put into a model before it is asked.

    compressor   and pruner: a name; None: none; NOT_NAMED: as the model was saved
    knobs        of each part by its name
    """

    compressor: str | None
    pruner: str | None
    text_encoder: str | None
    knobs: dict[str, dict[str, Any]]


def read_parts(
    compressor: str | None,
    pruner: str | None,
    text_encoder: str | None,
    settings: Mapping[str, Any],
    known_settings: Sequence[str],
) -> EvaluatedParts:
    """The parts with their knobs, which `settings` has as NAME.KNOB. UsageError for a setting of none of
    them, with what may be set; `known_settings`: all that are no knobs."""
    compressor = read_part_name("compressor", compressor)
    pruner = read_part_name("prune", pruner)
    if text_encoder is not None and not compressor:
        raise UsageError(f"text_encoder={text_encoder}: of which compressor? name one, compressor=cdpruner")
    knobs: dict[str, dict[str, Any]] = {name: {} for name in (compressor, pruner) if name}
    for setting, value in settings.items():
        part, _, knob = setting.partition(".")
        if not knob or part not in knobs:
            known = [*known_settings, *(f"{name}.KNOB" for name in knobs)]
            raise UsageError(f"{setting}={value}: no setting of this model{suggest(setting, known)}")
        knobs[part][knob] = read_knob(setting, value)
    return EvaluatedParts(compressor, pruner, text_encoder, knobs)


def list_settings(model_class: type) -> list[str]:
    """What a harness's class may be told, knobs aside."""
    names = []
    for name, parameter in inspect.signature(model_class).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            names.append(name)
    return names


def read_dtype(name: str | None) -> torch.dtype | None:
    """The type of that name. UsageError for one that no model answers in."""
    if name is None:
        return None
    if name not in DTYPES:
        raise UsageError(f"dtype={name}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def read_device(name: str | None) -> torch.device:
    """The device of that name; None: a GPU if there is one. UsageError for one that is not there."""
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    # torch raises an AssertionError where it was built without that kind of device
    except (AssertionError, RuntimeError, TypeError) as error:
        raise UsageError(
            f"device={name}: not to be had here ({shorten_reason(error)}); give one that is, or leave it out"
        ) from error
    return torch.device(name)


def read_part_name(setting: str, name: object) -> str | None:
    """A part's name; UsageError for what a harness has read as a number or a switch."""
    if name is None or name in NOTHING:
        return None
    return cast(str, conform(name, str, setting))


def read_knob(setting: str, value: Any) -> Any:
    """A knob's value where a harness hands a text on: a list, or nothing."""
    if value in NOTHING:
        return None
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise UsageError(f"{setting}={value}: expected a list, such as [8,16,24] or [0.6,0.3]") from error
    return value


def load_evaluated_model(
    pretrained: str,
    parts: EvaluatedParts,
    device: torch.device,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """(model, processor), in eval mode, with the parts in it. UsageError for a model or a part that cannot
    be, and for parts whose weights nobody has trained."""
    folder = find_folder(pretrained, revision)
    if is_plain(folder):
        model, processor = load_plain_chat_model(folder, pretrained, parts, device, dtype)
    elif parts.compressor == NOT_NAMED:
        model, processor = saved.load_chat_model(folder, device, dtype)
    else:
        saved.find_model_folder(folder, attached=True)  # says so where there is no such model
        raise UsageError(
            f"compressor={parts.compressor or 'null'}: {pretrained} was saved with a compressor of its "
            "own; leave it out, or name the model that it was put into"
        )
    if parts.pruner != NOT_NAMED:
        set_pruner(model, parts)
    return model, processor


def set_pruner(model: Any, parts: EvaluatedParts) -> None:
    """Put the pruner in, or take the one out that a composed model was saved with. UsageError for one that a
    few samples would have to be shown first."""
    name = parts.pruner
    knobs = parts.knobs[name] if name else {}
    if name:
        depth = llm_sizes(model.config)["llm_layers"]
        if pruners.create(name, llm_layers=depth, **knobs).samples:
            raise UsageError(f"prune={name}: has to be calibrated; give it {name}.recipe=[...]")
    if isinstance(model, FlashSlothForConditionalGeneration):
        model.set_pruner(name, **knobs)
    elif name:  # in another MLLM there is none before
        reuse.prune(model, name, **knobs)


def is_plain(folder: Path) -> bool:
    """Whether a folder has a model of transformers with nothing of ours in it."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    kind = read_json_object(config).get("model_type")
    return kind in CONFIG_MAPPING and kind != saved.KIND and not saved.is_attached(folder)


def load_plain_chat_model(
    folder: Path, name: str, parts: EvaluatedParts, device: torch.device, dtype: torch.dtype | None
) -> tuple[Any, Any]:
    """A model of transformers, with the compressor in it where there is one."""
    if parts.compressor == parts.pruner == NOT_NAMED:
        kind = read_json_object(folder / "config.json")["model_type"]
        raise UsageError(
            f"{name}: a model of type {kind}, not slothkit; put a compressor without weights into it "
            "(compressor=visionzip,visionzip.tokens=64) or a pruner (prune=fastv), or take it as it is "
            "(prune=null)"
        )
    dtype = saved.choose_dtype(device, dtype)
    model = load_model(AutoModelForImageTextToText, folder, name, DOWNLOAD_ADVICE, dtype=dtype)
    processor = load_pretrained(AutoProcessor, folder, name, DOWNLOAD_ADVICE)
    saved.check_chat_template(processor, name)
    if parts.compressor:
        attach_without_training(model, processor, parts)
    return model.to(device).eval(), processor


def attach_without_training(model: Any, processor: Any, parts: EvaluatedParts) -> None:
    """Put the compressor in. UsageError where it, or a projector behind it, would have to be trained."""
    assert parts.compressor is not None  # asked by the caller
    with warnings.catch_warnings():
        warnings.simplefilter("error", reuse.NeedsTraining)
        try:
            reuse.attach(
                model,
                processor,
                parts.compressor,
                text_encoder=parts.text_encoder,
                **parts.knobs[parts.compressor],
            )
        except reuse.NeedsTraining as warning:
            raise UsageError(f"compressor={parts.compressor}: {warning}") from warning
    untrained = reuse.name_trained_parts(model)
    if untrained:
        raise UsageError(
            f"compressor={parts.compressor}: has weights that nobody has trained ({', '.join(untrained)}); "
            "train it (`llm_adapters.reuse.attach`), save the model and evaluate its folder"
        )


def reads_videos(model: Any, processor: Any) -> bool:
    """Whether a model takes videos as such, with what is put into it; any other is shown their frames as
    images."""
    if isinstance(model, FlashSlothForConditionalGeneration) or not hasattr(processor, "video_processor"):
        return False
    attached = getattr(model, PARTS_ATTRIBUTE, None)
    return attached is None or not attached.refuses_videos
