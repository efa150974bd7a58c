"""The model that an evaluation harness asks: a saved one, or any MLLM of transformers with a compressor that
needs no training, or a pruner, put into it for this evaluation."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from compressors.errors import UsageError
from compressors.reading import read_json_object
from compressors.registry import suggest
from connectors.hub import find_folder
from connectors.pretrained import load_model, load_pretrained
from llm_adapters import reuse, saved
from llm_adapters.adapter import llm_sizes
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.pruning.base import registry as pruners

NOTHING = ("null", "None", "none")  # what a part may be called that is not there
DOWNLOAD_ADVICE = "download it again"


class EvaluatedParts(NamedTuple):
    """What is put into a model before it is asked; a part without a name is not.

    knobs      of each part by its name
    is_named   whether a part was named at all, if only as null: the model may then be a plain one
    """

    compressor: str | None
    pruner: str | None
    text_encoder: str | None
    knobs: dict[str, dict[str, Any]]
    is_named: bool


def read_parts(
    compressor: str | None, pruner: str | None, text_encoder: str | None, settings: Mapping[str, Any]
) -> EvaluatedParts:
    """The parts with their knobs, which `settings` has as NAME.KNOB. UsageError for a setting of none of
    them."""
    is_named = compressor is not None or pruner is not None
    compressor = None if compressor in NOTHING else compressor
    pruner = None if pruner in NOTHING else pruner
    if text_encoder is not None and compressor is None:
        raise UsageError(f"text_encoder={text_encoder}: of which compressor? name one, compressor=cdpruner")
    knobs: dict[str, dict[str, Any]] = {name: {} for name in (compressor, pruner) if name is not None}
    for setting, value in settings.items():
        part, _, knob = setting.partition(".")
        if not knob or part not in knobs:
            known = ["compressor", "prune", "text_encoder", *(f"{name}.KNOB" for name in knobs)]
            raise UsageError(f"{setting}={value}: no setting of this model{suggest(setting, known)}")
        knobs[part][knob] = read_knob(value)
    return EvaluatedParts(compressor, pruner, text_encoder, knobs, is_named)


def read_knob(value: Any) -> Any:
    """A knob's value where a harness hands a text on: a list, or nothing."""
    if value in NOTHING:
        return None
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise UsageError(f"{value}: expected a list, such as [8,16,24] or [0.6,0.3]") from error
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
    else:
        if parts.compressor is not None:
            raise UsageError(
                f"compressor={parts.compressor}: {pretrained} was saved with a compressor of its own; "
                "leave it out, or name the model that it was put into"
            )
        model, processor = saved.load_chat_model(folder, device, dtype)
    if parts.pruner is None:
        return model, processor
    check_calibration(parts, model)
    if isinstance(model, FlashSlothForConditionalGeneration):
        model.set_pruner(parts.pruner, **parts.knobs[parts.pruner])
    else:
        reuse.prune(model, parts.pruner, **parts.knobs[parts.pruner])
    return model, processor


def is_plain(folder: Path) -> bool:
    """Whether a folder has a model of transformers with nothing of ours in it."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    kind = read_json_object(config).get("model_type")
    return kind is not None and kind != saved.KIND and not saved.is_attached(folder)


def load_plain_chat_model(
    folder: Path, name: str, parts: EvaluatedParts, device: torch.device, dtype: torch.dtype | None
) -> tuple[Any, Any]:
    """A model of transformers, with the compressor in it where there is one."""
    if not parts.is_named:
        kind = read_json_object(folder / "config.json")["model_type"]
        raise UsageError(
            f"{name}: a model of type {kind}, not slothkit; put a compressor without weights into it "
            "(compressor=visionzip,visionzip.tokens=64) or a pruner (prune=fastv), or take it as it is "
            "(prune=null)"
        )
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_model(AutoModelForImageTextToText, folder, name, DOWNLOAD_ADVICE, dtype=dtype)
    processor = load_pretrained(AutoProcessor, folder, name, DOWNLOAD_ADVICE)
    if not processor.chat_template:
        raise UsageError(f"{name}: the processor has no chat template; give it one and save it again")
    if parts.compressor is not None:
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


def check_calibration(parts: EvaluatedParts, model: Any) -> None:
    """UsageError for a pruner that a few samples would have to be shown first."""
    assert parts.pruner is not None  # asked by the caller
    depth = llm_sizes(model.config)["llm_layers"]
    pruner = pruners.create(parts.pruner, llm_layers=depth, **parts.knobs[parts.pruner])
    if pruner.samples:
        raise UsageError(f"prune={parts.pruner}: has to be calibrated; give it {parts.pruner}.recipe=[...]")
