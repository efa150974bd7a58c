"""What an attached model's `save_pretrained` wrote, or an adapter of one, loaded again."""

import warnings
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from compressors.errors import UsageError
from compressors.reading import read_json_object
from connectors.hub import select_hub_options
from connectors.pretrained import load_model
from llm_adapters.reuse.attaching import attach, name_trained_parts, pick
from llm_adapters.reuse.creating import NeedsTraining
from llm_adapters.reuse.folders import (
    ADAPTER_FILE,
    SAVE_ADVICE,
    find_given_folder,
    find_named_base,
    list_differences,
    load_plain_model,
    load_processor,
    read_record,
    read_saved_parts,
    refuse_own_model,
)
from llm_adapters.reuse.pruning import prune
from llm_adapters.reuse.saving import RECORD_FILE
from llm_adapters.reuse.wrapping import PARTS_ATTRIBUTE
from llm_adapters.saved import is_attached


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    text_encoder: str | Path | None = None,
    **kwargs: Any,
) -> tuple[Any, ProcessorMixin]:
    """What `save_pretrained` of an attached model and of its processor wrote, or that of a PeftModel of one.

    source      a folder, or a repository of the hub, which the cache has or which is downloaded
    revision    of a repository: a branch, a tag or a commit
    base        of an adapter: where the model is that it was trained on; None: where it says
    text_encoder    where the text encoder is that a compressor reads questions by; None: where it says
    kwargs      `from_pretrained`'s
    UsageError for a folder of another model, such as a cell's, which `slothkit.load` takes.
    """
    options = select_hub_options(kwargs)
    folder = find_given_folder(source, revision, **options)
    if (folder / ADAPTER_FILE).is_file():
        return _load_adapter(folder, base, text_encoder, kwargs)
    refuse_own_model(folder, source)
    model, record = load_plain_model(folder, **kwargs)
    processor = load_processor(folder, record)
    _attach_record(model, processor, record, text_encoder)
    _load_weights(model, folder, kwargs)
    return model, processor


def _load_weights(model: PreTrainedModel, folder: Path, kwargs: dict[str, Any]) -> None:
    """The weights of what is attached to a model, from its folder. `kwargs`: as in `load`. UsageError for
    those of other parts."""
    saved_parts = read_saved_parts(folder, kwargs.get("variant"))
    try:
        getattr(model, PARTS_ATTRIBUTE).load_state_dict(saved_parts)
    except RuntimeError as error:
        faults = " ".join(str(error).split())
        raise UsageError(
            f"{folder}: its weights are not those of what its record says was attached ({faults}); "
            f"{SAVE_ADVICE}"
        ) from error


def _attach_record(
    model: PreTrainedModel, processor: ProcessorMixin, record: dict[str, Any], text_encoder: str | Path | None
) -> None:
    """What a record tells, attached again, with fresh weights. `text_encoder`: as in `load`."""
    if text_encoder is not None:
        record["text_encoder"] = text_encoder
    knobs = record.pop("knobs")
    scale = record.pop("scale", None)
    pruner = record.pop("pruner", None)
    if hasattr(model.config, "slothkit"):  # folders of 1.0 have it beside the plain configuration
        del model.config.slothkit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NeedsTraining)  # it was saved with its weights
        attach(model, processor, **record, **knobs)
    if scale is not None:
        pick(model, processor, scale)
    if pruner is not None:
        prune(model, **pruner)


def _load_adapter(
    folder: Path, base: str | Path | None, text_encoder: str | Path | None, kwargs: dict[str, Any]
) -> tuple[Any, ProcessorMixin]:
    """A PeftModel, of an attached model that was saved or of a plain one that a compressor was put into. What
    is attached, and the processor, are those that were saved with the adapter: its base may have others."""
    from peft import PeftModel  # takes seconds to import, and nothing else here needs it

    adapter = read_json_object(folder / ADAPTER_FILE)
    options = select_hub_options(kwargs)
    if base is None:
        base_folder = find_named_base(adapter, folder / ADAPTER_FILE, **options)
    else:
        base_folder = find_given_folder(base, None, **options)
    base_record: dict[str, Any] = {}
    if is_attached(base_folder):
        model, base_record = load_plain_model(base_folder, **kwargs)
    if base_record and not (folder / RECORD_FILE).is_file():  # no processor was saved with the adapter
        record = dict(base_record)
        processor = load_processor(base_folder, record)
    else:
        record = read_record(folder)
        processor = load_processor(folder, record)
    if not base_record:
        source = str(base or adapter["base_model_name_or_path"])
        model = load_model(AutoModelForImageTextToText, base_folder, source, SAVE_ADVICE, **kwargs)
    differences = list_differences(record, base_record) if base_record else []
    _attach_record(model, processor, record, text_encoder)
    if base_record and not differences:
        _load_weights(model, base_folder, kwargs)
    else:
        _check_weights(folder, model, adapter, differences)
    return PeftModel.from_pretrained(model, str(folder)), processor


def _check_weights(
    folder: Path, model: PreTrainedModel, adapter: dict[str, Any], differences: list[str]
) -> None:
    """UsageError for attached parts that have weights which the adapter lacks. differences: by which those of
    its base are others."""
    missing = sorted(set(name_trained_parts(model)) - set(adapter.get("modules_to_save") or ()))
    if not missing:
        return
    reason = ""
    if differences:
        reason = f", and its base has others: {'; '.join(differences)}"
    raise UsageError(
        f"{folder}: the adapter has no weights of {', '.join(missing)}{reason}; give base= a model that was "
        "saved with them, or train with modules_to_save=reuse.name_trained_parts(model)"
    )
