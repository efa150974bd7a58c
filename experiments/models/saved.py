"""A trained model, by the folder of its cell, of its finetune stage or of its weights, or by its repository
of the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressors.errors import UsageError
from compressors.reading import check_regular_file, read_json_file
from experiments.config.presets import read_yaml
from experiments.config.schema import BLIND_COMPRESSOR
from llm_adapters import saved
from llm_adapters.saved import find_model_folder

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["find_model_folder", "find_newest_cell", "load_trained_model", "open_picture", "read_json_file"]


def find_newest_cell(out: Path) -> Path:
    """The cell below `out` that finished last; a blind one, which a sweep adds by itself, only if all are."""
    notes = list(Path(out).glob("cells/*/stages.json"))
    if not notes:
        raise UsageError(
            f"no finished cell below {out}; train one with python -m experiments.sweep, or "
            "name its directory with out=DIR, or a model's folder with model=DIR"
        )
    notes.sort(key=lambda note: note.stat().st_mtime, reverse=True)
    for note in notes:
        settings = read_yaml(note.with_name("config.yaml"))
        if settings.get("compressor") != BLIND_COMPRESSOR:
            return note.parent
    return notes[0].parent


def load_trained_model(path: str | Path, revision: str | None = None) -> tuple[Any, Any]:
    """(model, processor) of `find_model_folder(path, revision=revision)`, in eval mode, in bfloat16 on a
    GPU."""
    # torch and transformers: a folder or a picture that is not there is answered without them
    from experiments.models.build import pick_device, silence_libraries

    silence_libraries()
    return saved.load_saved_model(path, pick_device("auto"), revision=revision)


def open_picture(path: Path) -> "Image.Image":
    """A picture in RGB and upright, or a UsageError."""
    from PIL import Image

    from llm_adapters import orientation

    try:
        if path.exists():
            check_regular_file(path)
        with Image.open(path) as picture:
            return orientation.convert_to_upright_rgb(picture)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such picture") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except orientation.IMAGE_ERRORS as error:
        raise UsageError(f"{path}: not a picture, or a damaged one ({error})") from error
