"""The sections of a cell's configuration: settings of its parts, its data, its stages and its trainer."""

from dataclasses import dataclass

from compressors.setting_fields import setting
from experiments.registries import datasets

WEIGHTED_ROLES = ("pretrain", "train")  # of data that training draws
SEEDS = 2**32  # how many there are: torch and NumPy take 32 bits
# what `init_parts` may name
MODEL_PARTS = ("tower", "compressor", "projector", "query_module", "llm")


def list_dataset_choices() -> tuple[str | None, ...]:
    """Asked late: a notebook may register a data set of its own."""
    return (None, *datasets.names())


@dataclass
class TowerSettings:
    """Vision tower."""

    source: str = setting("asset:tiny/tower", "asset: or cache:NAME, folder, hub id, open_clip:NAME[:TAG]")
    select_layer: int = setting(-1, "which hidden state is read, -2: the one before the last")
    train: bool = setting(False, "stage 2 trains the tower too; features cannot be cached then")
    cache: bool = setting(True, "compute the features of a frozen tower once and keep them on disk, in fp16")


@dataclass
class LLMSettings:
    """Language model."""

    source: str = setting("asset:tiny/llm", "asset: or cache:NAME, folder, hub id")


@dataclass
class PromptSettings:
    """The words around a conversation's turns."""

    system: str = setting("", "before everything")
    user: str = setting("USER:", "before a question")
    assistant: str = setting("ASSISTANT:", "before an answer")
    end: str = setting("</s>", "after an answer")


@dataclass
class ImageSettings:
    """What the tower sees."""

    size: int | None = setting(None, "pixels; null: the tower's own", low=1)
    tiles: int = setting(1, "k > 1: the whole image and k x k tiles, in stage 2 and evaluation", low=1)
    layout: str = setting(
        "square",
        "of tiles; anyres: rows x columns by an image's shape, at most k x k",
        choices=("square", "anyres"),
    )


@dataclass
class DataSettings:
    """Training and test data: splits of an embedded data set, files (.json, .jsonl), or Hugging Face data
    sets (./FOLDER of save_to_disk, hf:NAME), read wholly before anything runs unless they are streamed."""

    dataset: str | None = setting(
        "picture_vqa", "embedded data set to write; null: files only", choices=list_dataset_choices
    )
    seed: int = setting(0, "seed of the embedded data set", low=0, below=SEEDS)
    scale: float = setting(1.0, "size of the embedded data set, 1: as designed", above=0)
    pretrain: list[str] = setting(["pretrain"], "stage 1: splits, files or data sets: [a.json,b.jsonl]")
    pretrain_weights: list[float] = setting(
        [], "how often an epoch draws the rows of each entry of data.pretrain; []: once", above=0
    )
    train: list[str] = setting(["train"], "stage 2: splits, files or data sets: [a.json,./folder]")
    train_weights: list[float] = setting(
        [], "how often an epoch draws the rows of each entry of data.train, [2,0.5]; []: once", above=0
    )
    validation: list[str] = setting([], "looked at during stage 2 (validate.every), trained on by none")
    test: list[str] = setting(["test"], "evaluation: splits, files or data sets")
    streaming: bool = setting(
        False, "read training rows while training: shards (DIR/*.parquet, *.jsonl, ./FOLDER, hf:NAME)"
    )
    shuffle_buffer: int = setting(1000, "rows of a stream that are in memory and shuffled together", low=1)
    bad_rows: int = setting(
        0, "rows of a stream that a process may leave out because they cannot be read", low=0
    )
    images: str | None = setting(None, "image folder of the files; null: beside them")
    outside_images: bool = setting(False, "images may lie outside of the image folder: absolute names and ..")
    max_length: int = setting(512, "text tokens of a sample", low=8)
    workers: str = setting(
        "auto",
        "data loader processes; auto: as many as cores beside a GPU, none on a CPU",
        form=(r"auto|0|[1-9]\d*", "auto or a number, 0 for none"),
    )


@dataclass
class OptimisationSettings:
    """One training stage: AdamW."""

    lr: float = setting(1e-3, "peak learning rate", above=0)
    batch_size: int = setting(32, "rows of one optimiser step, over all devices and pieces", low=1)
    accumulate: int = setting(1, "how many pieces a step is computed in", low=1)
    epochs: int = setting(1, "passes over the data; a stream has max_steps alone", low=1)
    max_steps: int | None = setting(
        None, "stop after so many optimiser steps, or when epochs are over", low=1
    )
    warmup: float = setting(0.03, "share of the steps that warms up", low=0, below=1)
    weight_decay: float = setting(0.0, "AdamW's", low=0)
    clip: float = setting(1.0, "gradient norm limit, 0: none", low=0)
    schedule: str = setting("cosine", "after the warm-up", choices=("cosine", "constant"))
    checkpointing: bool | None = setting(
        None, "compute the LLM's activations again in this stage; null: as trainer.gradient_checkpointing"
    )
    group_by_length: bool = setting(False, "a step's rows are of like length, all with images or all without")
    init: str | None = setting(
        None,
        "trained model to start from: CELL below out, its path, a saved model's folder or hub id[@REVISION]; "
        "in finetune: without a stage 1",
    )
    init_parts: list[str] = setting(
        [], "parts that are taken from init, as [compressor,llm]; []: all", choices=MODEL_PARTS
    )


@dataclass
class FinetuneSettings(OptimisationSettings):
    """Stage 2: AdamW, perhaps with a teacher, and at first perhaps without the visual tokens."""

    teacher: str | None = setting(
        None, "trained model, named as init is, whose answers' probabilities are learned beside the answers"
    )
    teacher_weight: float = setting(1.0, "of the divergence from the teacher in the loss; 0: none", low=0)
    # beyond these limits the divergence is rounding of float32, or nan
    teacher_temperature: float = setting(
        1.0, "T of both softmaxes in the divergence, which counts T^2 times", low=0.001, below=1000
    )

    query_warmup: float = setting(
        0.0,
        "first share of the steps that hides visual tokens, so that the query module fetches more; 0: paper",
        low=0,
        below=1,
    )
    query_warmup_form: str = setting(
        "step",
        "step: hidden in all rows, then in none; fade: in ever fewer rows; thin: all but a quarter of them",
        choices=("step", "fade", "thin"),
    )


@dataclass
class LoRASettings:
    """Stage 2 tunes low-rank adapters of the LLM (needs peft), and compressor and query module in full."""

    rank: int = setting(0, "0: none, the whole LLM is tuned", low=0)
    alpha: float = setting(16.0, "the adapters count alpha / rank", above=0)
    dropout: float = setting(0.05, "before the adapters", low=0, below=1)
    target: list[str] = setting([], "names of linear layers; []: all but the output layer")


@dataclass
class EvaluationSettings:
    """Greedy answers to the test questions."""

    batch_size: int = setting(64, "questions at once", low=1)
    max_new_tokens: int = setting(16, "longest answer", low=1)
    limit: int | None = setting(None, "only the first questions", low=1)
    scale: int | None = setting(None, "the scale of a compressor trained at several (matryoshka)", low=1)
    metric: str | dict[str, str] = setting(
        "exact", "NAME of what scores answers, or one a family: {reading: anls, default: exact}"
    )
    compressor: str | None = setting(
        None,
        "NAME of a compressor without weights, behind a tower whose LLM was trained with compressor=identity",
    )
    blank_queries: bool = setting(
        False, "without the query module's update of the query tokens: what is lost is what it gives"
    )
    cache: str = setting(
        "auto",
        "KV cache: dynamic grows; static has a fixed size, with which a GPU compiles the decoding step; "
        "auto: static on a GPU where LLM and cell allow it",
        choices=("auto", "dynamic", "static"),
    )


@dataclass
class JudgeSettings:
    """The chat model that scores answers where evaluate.metric is judge."""

    model: str | None = setting(None, "its folder or hub id[@REVISION]")
    prompt: str | None = setting(
        None, "what it is asked, with {question}, {reference} and {answer}; null: the usual words"
    )
    max_new_tokens: int = setting(
        16, "longest verdict; its last line is the score, a number from 0 to 1", low=1
    )
    batch_size: int = setting(16, "answers at once", low=1)


@dataclass
class ValidationSettings:
    """How stage 2 is watched on data.validation; no weight follows from it."""

    every: int = setting(100, "steps between two looks at the loss", low=1)
    score_every: int | None = setting(
        None, "steps between two scores of generated answers by evaluate.metric; null: none", low=1
    )
    limit: int | None = setting(None, "only the first samples, of a score the first questions", low=1)
    shown: int = setting(3, "answers that are written into the log beside a score", low=0)


@dataclass
class TrainerSettings:
    """Lightning."""

    accelerator: str = setting(
        "auto", "auto finds a GPU, else the CPU", choices=("auto", "cpu", "gpu", "cuda", "mps", "tpu")
    )
    precision: str = setting(
        "auto",
        "auto: bf16 on a GPU, fp32 on the CPU; with 32 answers come from fp32, too",
        choices=("auto", "32", "16-mixed", "bf16-mixed", "16-true", "bf16-true"),
    )
    strategy: str = setting(
        "auto",
        "auto: ddp on several devices; deepspeed: ZeRO stage 2",
        choices=("auto", "ddp", "fsdp", "deepspeed"),
    )
    devices: str = setting(
        "auto",
        "how many, or which: [0,2]",
        form=(r"auto|-1|[1-9]\d*|\[\d+(, ?\d+)*\]", "auto, a number such as 2, or which ones: [0,2]"),
    )
    nodes: int = setting(
        1, "machines with so many devices each; the command is started once on each: srun, torchrun", low=1
    )
    gradient_checkpointing: bool = setting(False, "compute the LLM's activations again: less memory, slower")
    frozen: str = setting(
        "float32",
        "frozen parts in training; bfloat16: half their memory, with precision=bf16-mixed, fsdp aside",
        choices=("float32", "bfloat16"),
    )
    compile: bool = setting(False, "torch.compile the LLM's layers for training; takes up to a minute")
    logger: str = setting(
        "csv", "where curves go, a run a stage", choices=("csv", "tensorboard", "wandb", "none")
    )
    checkpoint_every: int = setting(200, "steps between checkpoints that a killed run resumes from", low=1)
