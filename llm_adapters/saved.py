"""A saved model, by the folder of its cell, of its finetune stage or of its weights, or by its repository of
the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressors.errors import UsageError
from compressors.reading import read_json_file, read_json_object
from connectors.hub import find_folder

if TYPE_CHECKING:
    import torch

KIND = "slothkit"
STAGES_FILE = "stages.json"  # in a cell's folder: the stages that it came from
MODEL_FOLDER = "model"  # in the folder of a finetune stage


def find_model_folder(path: str | Path, attached: bool = False, revision: str | None = None) -> Path:
    """The folder that `from_pretrained` takes, for OUT/cells/CELL, OUT/finetune/KEY, that folder itself, or a
    repository of the hub, at `revision`, which the cache has or which is downloaded.
    `attached`: of another MLLM with a compressor in it (`llm_adapters.reuse`), too.
    UsageError if none of them is there."""
    path = find_folder(path, revision)
    if not path.exists():
        raise UsageError(f"{path}: no such folder; give OUT/cells/CELL, OUT/finetune/KEY or a saved model's")
    stages = path / STAGES_FILE
    if stages.is_file():
        trained = None
        for name in read_json_file(stages):
            if str(name).startswith("finetune/"):
                trained = str(name)
        if trained is None:
            raise UsageError(f"{stages}: names no finetune stage; run the cell's command again")
        return check_model_folder(path.resolve().parent.parent / trained / MODEL_FOLDER, attached)
    inside = path / MODEL_FOLDER
    return check_model_folder(
        inside if inside.is_dir() and not (path / "config.json").exists() else path, attached
    )


def check_model_folder(folder: Path, attached: bool = False) -> Path:
    """The folder, if a model of ours is saved in it."""
    config = folder / "config.json"
    if not config.is_file():
        raise UsageError(
            f"{folder}: no model here (no config.json); give OUT/cells/CELL, OUT/finetune/KEY "
            "or a folder that save_pretrained wrote"
        )
    kind = read_json_object(config).get("model_type")
    has_compressor = is_attached(folder)
    if has_compressor and not attached:
        raise UsageError(
            f"{folder}: another MLLM with a compressor in it; load it with llm_adapters.reuse.load"
        )
    if kind != KIND and not has_compressor:
        raise UsageError(
            f"{folder}: a model of type {kind}, not {KIND}; train one with "
            "python -m experiments.sweep, or convert one with python -m llm_adapters.released"
        )
    return folder


def is_attached(folder: Path) -> bool:
    """Whether the model in a folder is another MLLM with a compressor in it."""
    return isinstance(read_json_object(folder / "config.json").get("slothkit"), dict)


def load_saved_model(
    path: str | Path,
    device: "torch.device",
    dtype: "torch.dtype | None" = None,
    attached: bool = False,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """(model, processor) of `find_model_folder(path, attached, revision)`, in eval mode.

    `dtype`: None is bfloat16 on a GPU, else float32. UsageError for a folder that cannot be loaded.
    """
    from connectors.pretrained import load_model, load_pretrained
    from llm_adapters import reuse, saved_parts
    from llm_adapters.auto import FlashSlothForConditionalGeneration, FlashSlothProcessor

    folder = find_model_folder(path, attached, revision)
    dtype = choose_dtype(device, dtype)
    if is_attached(folder):
        other: Any
        other, processor = reuse.load(folder, dtype=dtype)
        saved_parts.check_generation_settings(other.generation_config, str(folder))
        return other.to(device).eval(), processor
    where = str(folder)
    advice = "save the model and its processor there again"
    model = load_model(FlashSlothForConditionalGeneration, folder, where, advice, dtype=dtype)
    processor = load_pretrained(FlashSlothProcessor, folder, where, advice)
    saved_parts.check_generation_settings(model.generation_config, where)
    saved_parts.check_tokenizer(processor.tokenizer, model.get_input_embeddings().num_embeddings, where)
    saved_parts.check_placeholders(model, processor, where)
    return model.to(device).eval(), processor  # not to `dtype`: rotary frequencies stay in float32


def load_chat_model(
    path: str | Path,
    device: "torch.device",
    dtype: "torch.dtype | None" = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """`load_saved_model`, of another MLLM with a compressor in it, too, whose processor has a chat template;
    UsageError for one without."""
    model, processor = load_saved_model(path, device, dtype, attached=True, revision=revision)
    check_chat_template(processor, path)
    return model, processor


def choose_dtype(device: "torch.device", dtype: "torch.dtype | None") -> "torch.dtype":
    """The type that a model answers in; None is bfloat16 on a GPU, else float32."""
    import torch

    if dtype is not None:
        return dtype
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def check_chat_template(processor: Any, name: str | Path) -> None:
    """UsageError for a processor without a chat template, which nobody can ask."""
    if not processor.chat_template:
        raise UsageError(f"{name}: the processor has no chat template; give it one and save it again")
