"""The configuration of one cell: every setting, its default, its meaning and its bounds.

`python -m experiments.sweep --help` prints it. How presets and the command line set it is in `cells.py`.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from compressors.setting_fields import setting
from experiments.config.schema_sections import (
    MODEL_PARTS,
    SEEDS,
    WEIGHTED_ROLES,
    DataSettings,
    EvaluationSettings,
    FinetuneSettings,
    ImageSettings,
    JudgeSettings,
    LLMSettings,
    LoRASettings,
    OptimisationSettings,
    PromptSettings,
    TowerSettings,
    TrainerSettings,
    ValidationSettings,
)

BLIND_COMPRESSOR = "none"
UNCOMPRESSED = "identity"  # the compressor that leaves the patches as they are
GPU_ACCELERATORS = ("auto", "gpu", "cuda")  # values of trainer.accelerator that take a GPU where there is one


@dataclass(frozen=True)
class CurveRun:
    """What a logger calls the run of one stage.

    name     of the stage: whose it is, or of what parts where several cells share it
    group    of all runs of a sweep
    kind     of stage
    key      the stage's, in short: runs of one name are told apart by it
    folder   the sweep's output directory
    """

    name: str
    group: str
    kind: str
    key: str
    folder: str


class TrainedStart(NamedTuple):
    """What a stage of training starts from.

    path     of the setting that says so
    source   the trained model, as the user names it
    parts    of MODEL_PARTS that are taken from it
    """

    path: str
    source: str
    parts: tuple[str, ...]


@dataclass
class Config:
    """One cell: a row of a table at one seed."""

    preset: str = setting("tiny", "where the settings start: a name or a YAML file")
    compressor: str = setting("sap+embq", "NAME[+QUERY_MODULE]; none: blind, no image at all")
    projector: str = setting("auto", "auto: mlp2x_gelu, or identity where the compressor projects itself")
    prune: str | None = setting(None, "NAME of what drops visual tokens in the LLM, in evaluation only")
    seed: int = setting(0, "of everything random in training", low=0, below=SEEDS)
    out: str = setting("runs", "output directory")
    tower: TowerSettings = field(default_factory=TowerSettings)
    llm: LLMSettings = field(default_factory=LLMSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    image: ImageSettings = field(default_factory=ImageSettings)
    data: DataSettings = field(default_factory=DataSettings)
    pretrain: OptimisationSettings = field(default_factory=OptimisationSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    lora: LoRASettings = field(default_factory=LoRASettings)
    evaluate: EvaluationSettings = field(default_factory=EvaluationSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    validate: ValidationSettings = field(default_factory=ValidationSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    parts: dict[str, Any] = field(default_factory=dict)  # knobs of the parts that it uses, by part
    curves: CurveRun | None = None  # where a stage's curves stand; set by the store for the stage it runs

    @property
    def compressor_name(self) -> str:
        return self.compressor.partition("+")[0]

    @property
    def evaluated_compressor(self) -> str:
        """The compressor in evaluation: another one may stand in the place of an `identity`."""
        return self.evaluate.compressor or self.compressor_name

    def find_compressor(self, role: str) -> str:
        """The compressor that images of a data role come before."""
        return self.evaluated_compressor if role == "test" else self.compressor_name

    @property
    def query_module(self) -> str | None:
        return self.compressor.partition("+")[2] or None

    @property
    def blind(self) -> bool:
        """No image, no vision parts: what the text alone tells."""
        return self.compressor_name == BLIND_COMPRESSOR

    @property
    def aligns(self) -> bool:
        """Whether there is a stage 1: not without an image, or where stage 2 starts from what is trained."""
        return not self.blind and self.finetune.init is None

    @property
    def has_teacher(self) -> bool:
        """Whether stage 2 learns from another model."""
        return self.finetune.teacher is not None and self.finetune.teacher_weight > 0

    def find_start(self, stage: str) -> TrainedStart | None:
        """The trained model that a stage of training starts from; None where it starts from the sources. What
        stage 1 does not train is in stage 2 as it was in stage 1."""
        section = "pretrain" if self.aligns else "finetune"
        settings = getattr(self, section)
        if settings.init is None:
            return None
        parts = settings.init_parts or MODEL_PARTS
        started_parts = [part for part in MODEL_PARTS if part in parts]
        # the query module takes no part in stage 1, so that all its variants share it
        if stage == "pretrain" and "query_module" in started_parts:
            started_parts.remove("query_module")
        return TrainedStart(f"{section}.init", settings.init, tuple(started_parts))

    @property
    def caches_features(self) -> bool:
        """Whether the tower's features are kept on disk: not where it is trained or there is no image."""
        return self.tower.cache and not self.tower.train and not self.blind

    def streams(self, role: str) -> bool:
        """Whether the data of a role are read while a stage trains on them."""
        return self.data.streaming and role in WEIGHTED_ROLES

    @property
    def projector_name(self) -> str:
        """The projector whose knobs may be set; `auto` may still become identity when the model is built."""
        if self.projector == "auto":
            return "mlp2x_gelu"
        return self.projector

    def knobs(self, part: str) -> dict[str, Any]:
        """What was set for a part, conformed to its signature."""
        return dict(self.parts.get(part, {}))

    def tiles(self, role: str) -> int:
        """Tiles a side for the data of a role; stage 1 sees whole images, as in the paper."""
        if role == "pretrain":
            return 1
        return self.image.tiles
