"""Settings that act on nothing in a cell, as knobs of a part that it does not have: the scale of LoRA without
LoRA, the weight of a teacher that nobody is taught by.

A product may have cells with a use for them and cells without; one that no cell uses is an error.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import NamedTuple

from compressors.setting_fields import collect_settings
from experiments.config.metric_names import asks_judge
from experiments.config.overrides import parse_value
from experiments.config.schema import Config
from experiments.config.schema_sections import OptimisationSettings

# without where it starts from, which has checks of its own
STAGE_1_SETTINGS = tuple(
    f"pretrain.{field.name}" for field in fields(OptimisationSettings) if not field.name.startswith("init")
)
DATA_ROLES = ("pretrain", "train", "validation", "test")


class Requirement(NamedTuple):
    """What settings act on.

    paths      settings, or the beginning of their paths with a dot at its end
    is_met     whether a cell has it
    words      what a line has to say for it
    may_stand  whether one value of them is no error where no cell has it: whoever runs one line after another
               says it for all of them. Several values are: their rows would be alike
    """

    paths: tuple[str, ...]
    is_met: Callable[[Config], bool]
    words: str
    may_stand: bool = False


def reads_own_data(config: Config) -> bool:
    """Whether any role reads more than splits of the embedded data set, which are called by a plain word."""
    entries: list[str] = []
    for role in DATA_ROLES:
        entries += getattr(config.data, role)
    return not all(entry.isidentifier() for entry in entries)


REQUIREMENTS = (
    Requirement(
        ("lora.alpha", "lora.dropout", "lora.target"), lambda config: config.lora.rank > 0, "lora.rank"
    ),
    Requirement(
        ("finetune.teacher_weight", "finetune.teacher_temperature"),
        lambda config: config.finetune.teacher is not None,
        "finetune.teacher",
    ),
    Requirement(("finetune.init_parts",), lambda config: config.finetune.init is not None, "finetune.init"),
    Requirement(("pretrain.init_parts",), lambda config: config.pretrain.init is not None, "pretrain.init"),
    Requirement(
        ("finetune.query_warmup_form",),
        lambda config: config.finetune.query_warmup > 0,
        "finetune.query_warmup",
    ),
    Requirement(("image.layout",), lambda config: config.image.tiles > 1, "image.tiles"),
    Requirement(("judge.",), asks_judge, "evaluate.metric=judge"),
    Requirement(("validate.",), lambda config: bool(config.data.validation), "data.validation"),
    Requirement(
        ("data.images", "data.outside_images"), reads_own_data, "files of your own, as data.train=FILE.json"
    ),
    Requirement(("data.seed", "data.scale"), lambda config: config.data.dataset is not None, "data.dataset"),
    Requirement(
        (*STAGE_1_SETTINGS, "data.pretrain", "data.pretrain_weights"),
        lambda config: config.aligns,
        "stage 1, which finetune.init and compressor=none leave out",
        may_stand=True,
    ),
    Requirement(
        ("image.", "tower.", "projector"),
        lambda config: not config.blind,
        "images, which compressor=none does not see",
        may_stand=True,
    ),
)


def find_missing_requirement(config: Config, path: str) -> Requirement | None:
    """What a setting acts on and a cell does not have; None for one that acts on something there."""
    for requirement in REQUIREMENTS:
        for beginning in requirement.paths:
            is_meant = path == beginning or (beginning.endswith(".") and path.startswith(beginning))
            if is_meant and not requirement.is_met(config):
                return requirement
    return None


def find_idle_settings(config: Config, paths: Iterable[str]) -> set[str]:
    """Those of these settings that act on nothing in a cell."""
    return {path for path in paths if find_missing_requirement(config, path) is not None}


def says_nothing(path: str, texts: Iterable[str]) -> bool:
    """Whether all values of a setting are what it has without being set, which asks for nothing."""
    field = collect_settings(Config).get(path)
    if field is None:
        return False
    return all(parse_value(text, path) == field.default for text in texts)
