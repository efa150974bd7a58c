"""A teacher in stage 2: a trained model whose probabilities of the answers are learned beside the answers.

The two models read the same conversations with visual and query tokens of their own number, so that their
rows have different lengths; what they have in common, and what is compared, are the answer tokens, in order.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from compressors.errors import UsageError, quote
from connectors.pretrained import check_weight_files, load_pretrained
from experiments.config.schema import Config
from experiments.config.schema_sections import FinetuneSettings
from experiments.config.trained import find_teacher
from experiments.data.loader import ConversationDataset, Row, SampleImages, StepLoader, StepRows
from experiments.data.order import StepOrder
from experiments.data.streaming.dataset import StreamedDataset
from experiments.models import pretrained
from experiments.stages.row_lengths import check_taught_rows
from experiments.stages.training.initial import build_without_weights
from llm_adapters import saved
from llm_adapters.answers import Lesson, can_split_head
from llm_adapters.conversation import IGNORE, IMAGE, QUERY
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor

ADVICE = "save the model and its processor there again"
NAMES_OF_PROCESSORS = {"image_processor_type", "processor_class", "auto_map"}  # which change no pixel
LOWER_PRECISIONS = {"bf16": torch.bfloat16, "16": torch.float16}  # by how Lightning's names begin


class Teacher:
    """A frozen model in evaluation mode. No module: neither optimiser, checkpoints nor shards know it.

    model             the teacher
    processor         makes its inputs
    settings          how it counts
    shares_features   it reads the cached features of the student's micro-batches, else pixels of its own
    """

    def __init__(
        self,
        model: FlashSlothForConditionalGeneration,
        processor: FlashSlothProcessor,
        settings: FinetuneSettings,
        shares_features: bool,
    ):
        self.model = model.requires_grad_(False).eval()
        self.processor = processor
        self.settings = settings
        self.shares_features = shares_features

    def place(self, device: torch.device, precision: str) -> None:
        """Move it to where the student trains, in Lightning's precision."""
        for name, dtype in LOWER_PRECISIONS.items():
            if precision.startswith(name):
                for parameter in self.model.parameters():  # buffers (rotary frequencies) stay as they are
                    parameter.data = parameter.data.to(dtype)
        self.model.to(device)

    def make_dataset(self, dataset: ConversationDataset) -> ConversationDataset:
        """The student's samples as the teacher reads them. UsageError for one that has more tokens than its
        LLM has positions; of a stream, as it is read."""
        owner = f"finetune.teacher={quote(self.settings.teacher)}: "
        positions = self.model.config.position_limit
        left_out = self.model.num_left_out(*self.processor.crop_size)
        images = SampleImages(self.processor)
        if isinstance(dataset, StreamedDataset):
            return StreamedDataset(
                images, dataset.max_length, dataset.rules, positions, left_out, owner, dataset.bad_rows
            )
        taught = ConversationDataset(dataset.samples, images, dataset.max_length)
        try:
            taught.check_positions(positions, left_out=left_out)
        except UsageError as error:
            raise UsageError(f"{owner}{error}") from error
        return taught

    @torch.no_grad()
    def make_lesson(self, rows: dict[str, Tensor], batch: dict[str, Any]) -> Lesson:
        """What the teacher says of a micro-batch: `rows` of `TaughtLoader`, beside the student's `batch`."""
        if self.shares_features:
            features = batch["vision_features"]
            compressor = self.model.compressor
            if not compressor.needs_levels and not compressor.needs_cues:
                features = features[..., : self.model.vision_tower.dim]  # without what the student's needs
            rows = {**rows, "vision_features": features, "image_turn": batch["image_turn"]}
        states = self.model(**rows, answer_states=True, use_cache=False).states
        return Lesson(states, self.settings.teacher_weight, self.settings.teacher_temperature)


class TaughtLoader(StepLoader):
    """Micro-batches with the same rows as a teacher reads them, under `taught`: what its model takes, and
    `answer_index`."""

    def __init__(
        self,
        dataset: ConversationDataset,
        order: StepOrder,
        taught: ConversationDataset,
        shares_features: bool,
        **options: int,
    ):
        super().__init__(dataset, order, **options)
        self.taught_loader = StepLoader(taught, order, **options)
        self.shares_features = shares_features

    def read_row(self, key: Any) -> Row:
        """The student's row. UsageError, too, for one that the teacher cannot read, so that it may be left
        out."""
        row = super().read_row(key)
        if self.dataset.bad_rows:
            self.taught_loader.dataset.encode(key)
        return row

    def make_micro_batches(self, step: StepRows) -> list[dict[str, Any]]:
        """The same, each with the teacher's rows of its samples."""
        micro_batches = super().make_micro_batches(step)
        for micro_batch, places in zip(micro_batches, self.cut_rows(step.rows)):
            piece = [step.keys[place] for place in places]
            micro_batch["taught"] = self.collate_taught(piece, micro_batch["labels"])
        return micro_batches

    def collate_taught(self, keys: Sequence[Any], labels: Tensor) -> dict[str, Tensor]:
        """The teacher's rows of these samples. UsageError where its answers are not those of `labels`, the
        student's (B, T)."""
        dataset = self.taught_loader.dataset
        if self.shares_features:
            rows = [(dataset.encode(key), torch.empty(0)) for key in keys]
            batch = self.taught_loader.collate_texts(rows)
            batch.pop("image_turn", None)  # the student's has blank images, too
        else:
            batch = self.taught_loader.collate([dataset[key] for key in keys])
        taught_labels = batch.pop("labels")
        if not torch.equal(taught_labels[taught_labels != IGNORE], labels[labels != IGNORE]):
            ids = ", ".join(quote(dataset.find_sample(key).id) for key in keys)
            raise UsageError(
                f"finetune.teacher: answers of samples {ids} are other tokens for it than for the LLM; take "
                "a teacher with the same tokenizer"
            )
        return batch


def load_teacher(
    config: Config, student: FlashSlothForConditionalGeneration, images: SampleImages
) -> Teacher | None:
    """The teacher of a cell's stage 2, on the CPU; None where it has none. `images`: the student's."""
    if not config.has_teacher:
        return None
    where = f"finetune.teacher={quote(config.finetune.teacher)}"
    folder = find_teacher(config)
    model, processor = saved.load_saved_model(folder, torch.device("cpu"), torch.float32)
    check_head(model, where)
    return Teacher(model, processor, config.finetune, reads_same_features(model, processor, student, images))


def reads_same_features(
    teacher: FlashSlothForConditionalGeneration,
    processor: FlashSlothProcessor,
    student: FlashSlothForConditionalGeneration,
    images: SampleImages,
) -> bool:
    """Whether the student's cached features are those that the teacher's own tower would give."""
    if images.cache is None or processor.tiling != images.processor.tiling:
        return False
    if describe_pixels(processor) != describe_pixels(images.processor):
        return False
    if teacher.config.select_layer != student.config.select_layer:
        return False
    compressor = teacher.compressor
    if compressor.image_rate != student.compressor.image_rate:
        return False
    needs = (compressor.needs_levels, compressor.needs_cues)
    # what the student's compressor needs more stands behind, and can be left out
    if any(needs) and needs != (student.compressor.needs_levels, student.compressor.needs_cues):
        return False
    state = teacher.vision_tower.state_dict()
    student_state = student.vision_tower.state_dict()
    if state.keys() != student_state.keys():
        return False
    return all(torch.equal(value, student_state[name].cpu()) for name, value in state.items())


def describe_pixels(processor: FlashSlothProcessor) -> dict[str, Any]:
    """All that makes pixels of a picture: size, resampling, mean and std."""
    values = processor.image_processor.to_dict()
    description = {}
    for name in sorted(values.keys() - NAMES_OF_PROCESSORS):
        value = values[name]
        description[name] = list(value) if isinstance(value, (tuple, list)) else value
    return description


def check_teacher(config: Config, student: FlashSlothForConditionalGeneration) -> None:
    """UsageError for a teacher that does not fit a cell: without images, with another vocabulary, asked in
    other words, or with fewer positions than a row of a data file has tokens for it. `student`: the cell's
    model, without weights. No weights are read."""
    if not config.has_teacher:
        return
    where = f"finetune.teacher={quote(config.finetune.teacher)}"
    folder = find_teacher(config)
    check_weight_files(folder, where)
    check_head(student, where)
    processor = load_pretrained(FlashSlothProcessor, folder, where, ADVICE)
    if not processor.image_tokens:
        raise UsageError(f"{where}: a blind model (compressor=none) sees no image; take one that does")
    check_vocabulary(config, processor, where)
    for name, text in asdict(config.prompt).items():
        if processor.prompt[name] != text:
            raise UsageError(
                f"{where}: was trained with prompt.{name}={quote(repr(processor.prompt[name]))}, the cell "
                f"has {quote(repr(text))}; train with the same prompt"
            )
    check_taught_rows(config, build_without_weights(folder, where, ADVICE), processor, where)


def check_head(model: FlashSlothForConditionalGeneration, where: str) -> None:
    """UsageError for an LLM of which the answers' logits alone cannot be had."""
    if not can_split_head(model.language_model):
        kind = type(model.language_model).__name__
        raise UsageError(f"{where}: {kind} with a loss of its router gives no answers' logits; leave it out")


def check_vocabulary(config: Config, processor: FlashSlothProcessor, where: str) -> None:
    """UsageError for a token that has another id in the teacher's tokenizer, or none. Placeholders, which no
    answer has, may."""
    vocabulary = pretrained.load_tokenizer(config).get_vocab()
    taught = processor.tokenizer.get_vocab()
    differing: list[str] = []
    for token in vocabulary.keys() | taught.keys():
        if token not in (IMAGE, QUERY) and vocabulary.get(token) != taught.get(token):
            differing.append(token)
    if not differing:
        return
    token = min(differing, key=lambda token: (vocabulary.get(token, len(vocabulary)), token))
    raise UsageError(
        f"{where}: another vocabulary than llm.source={quote(config.llm.source)}: {len(differing)} tokens "
        f"differ, such as {quote(repr(token))}, id {taught.get(token)} there, {vocabulary.get(token)} here; "
        "take a teacher with the same tokenizer"
    )
