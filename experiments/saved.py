"""A trained model, by the folder of its cell, of its finetune stage or of its weights."""
import json
from pathlib import Path

from compressors.errors import UsageError

KIND = "slothkit"


def find(path: Path) -> Path:
    """The folder that `from_pretrained` takes, for OUT/cells/CELL, OUT/finetune/KEY or that folder itself.
    UsageError if none of them is there."""
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such folder; give OUT/cells/CELL, OUT/finetune/KEY or a saved model's")
    stages = path / "stages.json"
    if stages.is_file():
        trained = next((name for name in read(stages) if name.startswith("finetune/")), None)
        if trained is None:
            raise UsageError(f"{stages}: names no finetune stage; run the cell's command again")
        return checked(path.resolve().parent.parent / trained / "model")
    inside = path / "model"  # of a finetune stage
    return checked(inside if inside.is_dir() and not (path / "config.json").exists() else path)


def checked(folder: Path) -> Path:
    """The folder, if a model of ours is saved in it."""
    config = folder / "config.json"
    if not config.is_file():
        raise UsageError(f"{folder}: no model here (no config.json); give OUT/cells/CELL, OUT/finetune/KEY "
                         "or a folder that save_pretrained wrote")
    kind = read(config).get("model_type")
    if kind != KIND:
        raise UsageError(f"{folder}: a model of type {kind}, not {KIND}; train one with "
                         "python -m experiments.sweep, or convert one with python -m llm_adapters.released")
    return folder


def read(path: Path):
    """A JSON file, or a UsageError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not JSON ({error}); the file is damaged") from error


def newest(out: Path) -> Path:
    """The cell below `out` that finished last."""
    cells = sorted(Path(out).glob("cells/*/stages.json"), key=lambda path: path.stat().st_mtime)
    if not cells:
        raise UsageError(f"no finished cell below {out}; train one with python -m experiments.sweep, or "
                         "name a folder with model=DIR")
    return cells[-1].parent


def load(path: Path):
    """(model, processor) of `find(path)`, in eval mode on the GPU, if there is one, in bfloat16."""
    import torch
    from safetensors import SafetensorError

    from experiments.build import pick_device, quiet
    from llm_adapters.auto import FlashSlothForConditionalGeneration, FlashSlothProcessor

    folder, device = find(path), pick_device("auto")
    quiet()
    try:
        model = FlashSlothForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        processor = FlashSlothProcessor.from_pretrained(folder)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{folder}: cannot be loaded ({reason}); save the model and its processor there "
                         "again") from error
    return model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval(), processor


def open_picture(path: Path):
    """A picture in RGB, or a UsageError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such picture") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{path}: not a picture, or a damaged one ({error})") from error
