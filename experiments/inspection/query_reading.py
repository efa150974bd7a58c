"""How well a model's query tokens read the picture: where they look for a sign that is asked about, and what
answers lose without them."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from compressors.errors import UsageError
from experiments.config.metric_names import collect_metric_options
from experiments.config.schema import Config
from experiments.data import roles
from experiments.data.llava import Sample
from experiments.data.loader import SampleImages, open_feature_cache
from experiments.inspection.attention import find_image_attention
from experiments.metrics.chance import average_scores
from experiments.metrics.scoring import QuestionScorer
from experiments.picture_vqa.scenes import SCENE_SIZE, Scene, Sign
from experiments.stages.generation import decode_answers, generate_answers
from experiments.stages.questions import batch_by_length, encode_questions
from experiments.stages.training.module import SlothModule
from experiments.stages.training.validation import watching
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor

READING = "reading"  # the family whose answers stand on one sign
NOUNS_OF_KIND = {"word": ("word", "letter"), "number": ("number", "digit")}


class QueryReading(NamedTuple):
    """What was measured at one optimiser step.

    scores     accuracy, overall and by family
    blanked    the same without what the query module fetches
    attention  the share of the queries' attention on patches of the sign that is asked about, by layer of the
               query module and head: the mean over query tokens and reading questions
    """

    step: int
    scores: dict[str, float]
    blanked: dict[str, float]
    attention: dict[str, list[float]]


@dataclass
class QueryProbe:
    """Questions with their pictures' features, asked again and again while a model trains.

    regions        by question number: True (H, W) on patches that the asked sign touches
    uniform_share  of the attention that would be on the sign if all patches got the same
    """

    questions: list[Sample]
    batches: list[tuple[list[int], dict[str, Tensor]]]
    regions: dict[int, Tensor]
    processor: FlashSlothProcessor
    scorer: QuestionScorer
    max_new_tokens: int

    @property
    def uniform_share(self) -> float:
        """The mean over the questions that have a region."""
        shares = [region.float().mean().item() for region in self.regions.values()]
        return sum(shares) / len(shares)

    def measure(self, model: FlashSlothForConditionalGeneration, step: int) -> QueryReading:
        """Ask a model in eval mode all questions, with and without the queries' update."""
        sums: dict[str, Tensor] = {}
        scores = self.ask(model, False, sums)
        blanked = self.ask(model, True, sums)
        attention = {name: (total / len(self.regions)).tolist() for name, total in sums.items()}
        return QueryReading(step, scores, blanked, attention)

    def ask(
        self, model: FlashSlothForConditionalGeneration, blank: bool, sums: dict[str, Tensor]
    ) -> dict[str, float]:
        """Accuracy, overall and by family; unless `blank`, `sums` grow by each question's attention."""
        scores: dict[str, list[float]] = {}
        for numbers, batch in self.batches:
            inputs = dict(batch)  # `generate_answers` blanks in place
            with watch_sign_attention(model, [] if blank else numbers, self.regions, sums):
                ids = generate_answers(model, inputs, self.max_new_tokens, blank)
            questions = [self.questions[number] for number in numbers]
            answers = self.scorer.score_answers(decode_answers(self.processor, ids), questions)
            for question, answer in zip(questions, answers):
                scores.setdefault(question.name_family(), []).append(answer.score)
        averages = average_scores(scores)
        return {"overall": averages["overall"], **averages["families"]}


def make_probe(config: Config, inputs: Mapping[str, Path], processor: FlashSlothProcessor) -> QueryProbe:
    """The questions of `data.test`, `evaluate.limit` of them. UsageError where their scenes are not known, or
    none of them asks for a sign."""
    cache = open_feature_cache(inputs)
    if cache is None:
        raise UsageError(
            "how queries read is measured on cached features; leave out tower.cache=false and tower.train"
        )
    scenes = read_scenes(config, inputs)
    questions = roles.load_questions(config, inputs)[: config.evaluate.limit]
    images = SampleImages(processor, cache)
    side = images(questions[0], 1).shape[1]
    regions: dict[int, Tensor] = {}
    for number, question in enumerate(questions):
        if question.name_family() != READING:
            continue
        sign = find_asked_sign(scenes[os.path.abspath(question.images[0])], question.turns[0].question)
        if sign is not None:
            regions[number] = mark_patches(sign, side)
    if not regions:
        raise UsageError(
            f"data.test={','.join(config.data.test)}: no question of the family '{READING}' among the first "
            f"{len(questions)}; raise evaluate.limit"
        )
    batches = []
    for numbers in batch_by_length(questions, images, config.evaluate.batch_size):
        batch = encode_questions(images, [questions[number] for number in numbers])
        batches.append((numbers, batch))
    scorer = QuestionScorer(config.evaluate.metric, collect_metric_options(config))
    return QueryProbe(questions, batches, regions, processor, scorer, config.evaluate.max_new_tokens)


def read_scenes(config: Config, inputs: Mapping[str, Path]) -> dict[str, Scene]:
    """The scene of each picture of `data.test`, by absolute path. UsageError for data without scenes."""
    scenes: dict[str, Scene] = {}
    for path, images in roles.locate_role_files(config, inputs, "test"):
        root = images or path.parent
        missing = UsageError(f"{path}: has no scenes, so nobody knows where a sign is; take data.test=tune")
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # JSON lines, Parquet: of no embedded data set
            raise missing from error
        for record in records:
            if "scene" not in record:
                raise missing
            scenes[os.path.abspath(root / record["image"])] = Scene.from_dict(record["scene"])
    return scenes


def find_asked_sign(scene: Scene, question: str) -> Sign | None:
    """The sign that a reading question is about; None where several could be meant."""
    candidates: list[Sign] = []
    words = question.split()
    for sign in scene.signs:
        by_colour = f"the {sign.colour} sign" in question
        by_kind = any(noun in words for noun in NOUNS_OF_KIND[sign.kind])
        if by_colour or by_kind:
            candidates.append(sign)
    if len(candidates) != 1:
        return None
    return candidates[0]


def mark_patches(sign: Sign, side: int) -> Tensor:
    """True (side, side) on the patches of a picture that a sign's box touches."""
    patch = SCENE_SIZE / side  # in pixels of the scene, whatever it is resized to
    left, top, right, bottom = sign.box
    starts = torch.arange(side) * patch
    columns = (starts < right) & (starts + patch > left)
    rows = (starts < bottom) & (starts + patch > top)
    return rows[:, None] & columns[None, :]


@contextmanager
def watch_sign_attention(
    model: FlashSlothForConditionalGeneration,
    numbers: Sequence[int],
    regions: Mapping[int, Tensor],
    sums: dict[str, Tensor],
) -> Iterator[None]:
    """While the model answers a batch of questions, add to `sums` what its queries pay to the asked signs.

    The weights are computed again beside the model, from the inputs that its own attention gets."""

    def note(name: str, module: Any, arguments: tuple[Any, ...]) -> None:
        query, key, _, mask = arguments
        weights = module.weights(query, key, mask).mean(2)  # (B, heads, P)
        for row, number in enumerate(numbers):
            if number in regions:
                region = regions[number].flatten().to(weights.device)
                share = weights[row][:, region].sum(-1).cpu()
                sums[name] = sums.get(name, torch.zeros_like(share)) + share

    handles = []
    if numbers:
        for name, module in find_image_attention(model):
            handles.append(module.register_forward_pre_hook(partial(note, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class QueryWatch(Callback):
    """Asks a probe's questions before the first optimiser step and at `points` equal distances behind it."""

    def __init__(self, probe: QueryProbe, points: int):
        self.probe = probe
        self.points = points
        self.readings: list[QueryReading] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:  # noqa: ARG002
        self.measure(module, 0)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        step = trainer.global_step
        assert isinstance(module, SlothModule)  # what a stage trains
        due = len(self.readings) * module.steps / self.points
        if step >= due and step > self.readings[-1].step:
            self.measure(module, step)

    def measure(self, module: L.LightningModule, step: int) -> None:
        """Ask all, and keep what comes."""
        assert isinstance(module, SlothModule)
        with watching(module):
            self.readings.append(self.probe.measure(module.model, step))
