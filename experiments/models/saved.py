"""A trained model, by the folder of its cell, of its finetune stage or of its weights, or by its repository
of the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressors.errors import UsageError
from compressors.reading import check_regular_file
from experiments.config.devices import pick_device
from experiments.config.presets import read_yaml
from experiments.config.schema import BLIND_COMPRESSOR
from experiments.config.schema_sections import TrainerSettings
from experiments.config.trained import CELLS_FOLDER, CONFIG_FILE, find_model
from llm_adapters import saved
from llm_adapters.saved import STAGES_FILE, find_model_folder

if TYPE_CHECKING:
    from PIL import Image


def find_newest_cell(out: Path) -> Path:
    """The cell below `out` that finished last, a blind one, which a sweep adds by itself, only if all are.
    Damaged ones, and those without their weights, are passed over; UsageError if there is no other."""
    notes = list(Path(out, CELLS_FOLDER).glob(f"*/{STAGES_FILE}"))
    if not notes:
        raise UsageError(
            f"no finished cell below {out}; train one with python -m experiments.sweep, or "
            "name its directory with out=DIR, or a model's folder with model=DIR"
        )
    notes.sort(key=lambda note: note.stat().st_mtime, reverse=True)
    faults: list[str] = []
    blind_cells: list[Path] = []
    for note in notes:
        cell = note.parent
        try:
            settings = read_yaml(cell / CONFIG_FILE)
        except UsageError as error:
            faults.append(f"{error}; run its sweep's command again")
            continue
        try:
            find_model(str(cell), out, str(cell))
        except UsageError as error:
            faults.append(str(error))
            continue
        if settings.get("compressor") != BLIND_COMPRESSOR:
            return cell
        blind_cells.append(cell)
    if not blind_cells:
        raise UsageError(f"no finished cell below {out} is whole: {faults[0]}")
    return blind_cells[0]


def load_trained_model(
    model: str | Path | None = None, revision: str | None = None, out: str | Path = "runs"
) -> tuple[Any, Any]:
    """(model, processor) in eval mode, in bfloat16 on a GPU.

    model      name of a finished cell below `out`, without its key or seed where it is the only one; its
               folder, that of its finetune stage or of a saved model; or OWNER/NAME of the hub; None: the
               cell that finished last
    revision   of a model of the hub: a branch, a tag or a commit

    UsageError where there is none, or several.
    """
    if model is None:
        model = find_newest_cell(Path(out))
    folder = find_named_model(model, revision, out, f"load({str(model)!r})")
    # torch and transformers: a folder or a picture that is not there is answered without them
    from experiments.models.build import silence_libraries

    silence_libraries()
    return saved.load_saved_model(folder, pick_device(TrainerSettings()))


def find_named_model(model: str | Path, revision: str | None, out: str | Path, where: str) -> Path:
    """The folder of what `load_trained_model` loads. UsageError, from `where`."""
    if revision is not None:  # which the hub alone has
        return find_model_folder(model, revision=revision)
    return find_model(str(model), out, where)


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
