"""A trained model, by the folder of its cell, of its finetune stage or of its weights."""
from pathlib import Path

from compressors.errors import UsageError
from llm_adapters import saved
from llm_adapters.saved import find, read

__all__ = ["find", "load", "newest", "open_picture", "read"]


def newest(out: Path) -> Path:
    """The cell below `out` that finished last."""
    cells = sorted(Path(out).glob("cells/*/stages.json"), key=lambda path: path.stat().st_mtime)
    if not cells:
        raise UsageError(f"no finished cell below {out}; train one with python -m experiments.sweep, or "
                         "name a folder with model=DIR")
    return cells[-1].parent


def load(path: Path):
    """(model, processor) of `find(path)`, in eval mode on the GPU, if there is one, in bfloat16."""
    from experiments.build import pick_device, quiet

    quiet()
    return saved.load(path, pick_device("auto"))


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
