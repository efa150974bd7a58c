"""What a model with a compressor attached, or an adapter, is loaded from: the files of its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from compressors.errors import UsageError
from compressors.reading import read_json_file, read_json_object
from connectors.hub import find_folder, is_hub_id
from connectors.pretrained import load_pretrained, silence_transformers
from llm_adapters.conversation import QUERY, QUESTION
from llm_adapters.reuse.processors import remove_markers
from llm_adapters.reuse.saving import PLAIN_CONFIG, RECORD_FILE
from llm_adapters.reuse.wrapping import PARTS_ATTRIBUTE
from llm_adapters.saved import find_model_folder

SAVE_ADVICE = "save the model and its processor there again"
ADAPTER_FILE = "adapter_config.json"
# of a record: what tells which weights the attached parts have
PART_NAMES = ("compressor", "knobs", "query_module", "query_knobs", "new_projector")


def refuse_own_model(folder: Path, source: str | Path) -> None:
    """UsageError for a model of this project's own kind, by the folder of its cell, stage or weights."""
    try:
        find_model_folder(folder)
    except UsageError:  # none of ours
        return
    raise UsageError(
        f"{source}: a model of this project's own kind; load it with slothkit.load({str(source)!r})"
    )


def load_plain_model(folder: Path, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model without what is attached, and the record of that. UsageError for another folder."""
    config_file = folder / "config.json"
    values = read_json_file(config_file) if config_file.is_file() else {}
    record = dict(values.get("slothkit") or {})
    plain = record.pop(PLAIN_CONFIG, None)
    if plain is not None:
        if plain["model_type"] not in CONFIG_MAPPING:
            raise UsageError(f"{folder}: transformers knows no '{plain['model_type']}'; upgrade it")
        kwargs["config"] = CONFIG_MAPPING[plain["model_type"]].from_dict(plain)
    with silence_transformers():  # the parts' keys are unexpected to the plain class
        loaded: Any = load_pretrained(
            AutoModelForImageTextToText, folder, str(folder), SAVE_ADVICE, output_loading_info=True, **kwargs
        )
    model, loading_info = loaded
    foreign = [key for key in loading_info["unexpected_keys"] if not key.startswith(f"{PARTS_ATTRIBUTE}.")]
    faults = foreign or sorted(loading_info["missing_keys"])
    if not record or faults:
        faults = faults or ["config.json has no slothkit record"]
        raise UsageError(f"{folder}: not a model saved with a compressor attached ({faults[0]})")
    return model, record


def load_processor(folder: Path, record: dict[str, Any]) -> Any:
    """The processor in a folder as it was before `attach`: `record` has its counts, and the markers that were
    added to its tokenizer, and loses both."""
    with silence_transformers():  # the folder's `model_type` is nothing to it
        processor = load_pretrained(AutoProcessor, folder, str(folder), SAVE_ADVICE)
    for name, value in record.pop("counts").items():
        setattr(processor, name, value)
    markers = [QUESTION, QUERY] if record.get("query_module") else []  # of folders that do not say it
    remove_markers(processor.tokenizer, record.pop("new_markers", markers))
    return processor


def read_saved_parts(folder: Path, variant: str | None) -> dict[str, torch.Tensor]:
    """The attached parts' tensors, of the files that `from_pretrained(variant=...)` reads."""
    prefix = f"{PARTS_ATTRIBUTE}."
    parts: dict[str, torch.Tensor] = {}
    for file in _list_weight_files(folder, variant):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  it is no mapping
                if key.startswith(prefix):
                    parts[key.removeprefix(prefix)] = tensors.get_tensor(key)
    return parts


def _list_weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files of a variant of a model's weights: other variants, and shards of an earlier save,
    may lie beside them. None where they are of another format."""
    suffix = f".{variant}" if variant is not None else ""
    whole = folder / f"model{suffix}.safetensors"
    if whole.is_file():
        return [whole]
    index = folder / f"model.safetensors.index{suffix}.json"
    if not index.is_file():
        return []
    names = set(read_json_object(index)["weight_map"].values())
    return [folder / name for name in sorted(names)]


def find_given_folder(source: str | Path, revision: str | None, **options: Any) -> Path:
    """`find_folder`. UsageError for a folder that is not there, too."""
    folder = find_folder(source, revision, **options)
    if not folder.is_dir():
        raise UsageError(
            f"{source}: no such folder; give that of a saved model, or its repository of the hub"
        )
    return folder


def find_named_base(adapter: Mapping[str, Any], where: Path, **options: Any) -> Path:
    """The folder of the model that an adapter was trained on, as its configuration, the file `where`, names
    it. UsageError where it names none, or one that is nowhere."""
    source = str(adapter.get("base_model_name_or_path") or "")
    if not source:
        raise UsageError(f"{where}: names no base_model_name_or_path; write it there, or give base=FOLDER")
    revision = adapter.get("revision") if is_hub_id(source) else None  # of the base, as PEFT notes it
    try:
        return find_given_folder(source, revision, **options)
    except UsageError as error:
        raise type(error)(f"{where}: base_model_name_or_path={error}, or give base=FOLDER") from error


def read_record(folder: Path) -> dict[str, Any]:
    """What was attached to the model of an adapter, as its processor noted it."""
    path = folder / RECORD_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder}: an adapter of a plain model, without what was attached to it ({RECORD_FILE}); "
            "save the processor that `attach` got there, too"
        )
    record: dict[str, Any] = read_json_file(path)
    return record


def list_differences(record: Mapping[str, Any], base_record: Mapping[str, Any]) -> list[str]:
    """By what the parts of an adapter's record are others than those of its base's, a phrase each."""
    differences = []
    for name in PART_NAMES:
        value = record.get(name)
        base_value = base_record.get(name)
        if value != base_value:
            differences.append(f"{name}={base_value} instead of {value}")
    return differences
