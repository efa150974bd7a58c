"""Stage 2 watched on data.validation: its loss, and scores of generated answers. No weight follows from it:
modes, random numbers and what training has noted are afterwards as they were before."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from compressors.errors import quote
from experiments.config.metric_names import collect_metric_options
from experiments.config.schema import Config
from experiments.data import llava, roles
from experiments.data.loader import ConversationDataset, SampleImages, StepLoader
from experiments.data.order import SampleOrder
from experiments.metrics.scoring import QuestionScorer
from experiments.runtime.progress import Reporter
from experiments.stages.generation import decode_answers, generate_answers
from experiments.stages.questions import batch_by_length, encode_questions
from experiments.stages.training.module import SlothModule
from llm_adapters.conversation import IGNORE, IMAGE
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.modes import evaluating
from llm_adapters.processing import FlashSlothProcessor


def make_validation(
    config: Config,
    stage: str,
    model: FlashSlothForConditionalGeneration,
    processor: FlashSlothProcessor,
    inputs: Mapping[str, Path],
    report: Reporter,
) -> list[Callback]:
    """What a stage's trainer calls to look at data.validation; nothing where it is not looked at. UsageError
    for a row that does not fit."""
    if stage != "finetune" or not config.data.validation:
        return []
    samples = roles.load_role_samples(config, inputs, "validation")
    questions = llava.split_questions(samples)[: config.validate.limit]
    # pixels: the feature cache has the training images alone
    images = SampleImages(processor)
    dataset = ConversationDataset(samples[: config.validate.limit], images, config.data.max_length)
    dataset.check_lengths()
    left_out = model.num_left_out(*processor.crop_size)
    dataset.check_positions(model.config.position_limit, left_out=left_out)
    if config.validate.score_every is not None:
        prompts = ConversationDataset(llava.drop_answers(questions), images)
        prompts.check_positions(model.config.position_limit, config.evaluate.max_new_tokens, left_out)
    return [Validation(config, dataset, questions, report)]


class Validation(Callback):
    """After every `validate.every` steps the loss, after every `validate.score_every` the score, and both
    after the last step: into the curves (validation_loss, validation_score) and the log."""

    def __init__(
        self,
        config: Config,
        dataset: ConversationDataset,
        questions: Sequence[llava.Sample],
        report: Reporter,
    ):
        self.config = config
        self.settings = config.validate
        self.evaluation = config.evaluate
        self.sharded = config.trainer.strategy == "fsdp"
        self.dataset = dataset
        self.questions = questions
        self.report = report
        self.last_step = 0
        # a process's share of a step's piece is what its memory is known to hold
        self.rows = config.finetune.batch_size // config.finetune.accumulate
        optimisation = replace(config.finetune, accumulate=1)
        self.loader = StepLoader(dataset, SampleOrder(len(dataset), optimisation, config.seed))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:  # noqa: ARG002
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        step = trainer.global_step
        if step == self.last_step:
            return  # a piece of a step
        self.last_step = step
        assert isinstance(module, SlothModule)  # what `fit_module` trains
        is_last = step == module.steps
        values: dict[str, float] = {}
        if is_last or step % self.settings.every == 0:
            with watching(module), trainer.precision_plugin.val_step_context():
                values["validation_loss"] = self.measure_loss(trainer, module)
        score_every = self.settings.score_every
        if score_every is not None and (is_last or step % score_every == 0):
            with watching(module), trainer.precision_plugin.val_step_context():
                values["validation_score"], answers = self.measure_score(trainer, module)
        if not values or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step - 1)  # Lightning counts the steps of its curves from 0
        for name, value in values.items():
            self.report.write_note(f"step {step}: {name.replace('_', ' ')} {value:.4g}")
        if "validation_score" in values:
            for line in self.list_answers(answers):
                self.report.write_note(line)

    def measure_loss(self, trainer: L.Trainer, module: SlothModule) -> float:
        """The mean over all answer tokens, as that of a step."""
        numbers = list(range(len(self.dataset)))
        if not self.sharded:  # else each forward pass needs all processes
            numbers = numbers[trainer.global_rank :: trainer.world_size]
        loss = torch.zeros((), dtype=torch.float64, device=module.device)
        tokens = 0
        size = max(1, self.rows // trainer.world_size)
        for start in range(0, len(numbers), size):
            rows = [self.dataset[number] for number in numbers[start : start + size]]
            batch: dict[str, Any] = self.loader.collate(rows)
            answer_tokens = int((batch["labels"] != IGNORE).sum())
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            mean = module.model(**batch, num_items_in_batch=answer_tokens, use_cache=False).loss
            loss += mean.double() * answer_tokens
            tokens += answer_tokens
        totals = torch.stack([loss, loss.new_tensor(tokens)])
        total_loss, total_tokens = trainer.strategy.reduce(totals, reduce_op="sum").tolist()
        return total_loss / total_tokens

    def measure_score(self, trainer: L.Trainer, module: SlothModule) -> tuple[float, dict[int, str]]:
        """The mean score of the questions by evaluate.metric, from 0 to 1, and this process's answers by the
        questions' numbers."""
        # a judge stands on the GPU that this process trains on
        scorer = QuestionScorer(self.evaluation.metric, collect_metric_options(self.config, module.device))
        images = self.dataset.images
        numbers = list(range(len(self.questions)))[trainer.global_rank :: trainer.world_size]
        questions = [self.questions[number] for number in numbers]
        answers: dict[int, str] = {}
        for batch in batch_by_length(questions, images, self.evaluation.batch_size):
            encoded = encode_questions(images, [questions[i] for i in batch])
            ids = generate_answers(module.model, encoded, self.evaluation.max_new_tokens)
            for i, text in zip(batch, decode_answers(images.processor, ids)):
                answers[numbers[i]] = text
        predictions = [answers[number] for number in numbers]
        scores = sum(scored.score for scored in scorer.score_answers(predictions, questions))
        totals = torch.tensor([scores, len(questions)], dtype=torch.float64, device=module.device)
        total_score, count = trainer.strategy.reduce(totals, reduce_op="sum").tolist()
        return total_score / count, answers

    def list_answers(self, answers: Mapping[int, str]) -> list[str]:
        """The first answers, a line each."""
        lines: list[str] = []
        for number in sorted(answers)[: self.settings.shown]:
            sample = self.questions[number]
            question, truth = sample.turns[0]
            words = quote(question.replace(IMAGE, " "))
            answer = quote(answers[number])
            lines.append(f"  {quote(sample.id)}: {words} -> {answer!r} (truth: {quote(truth)!r})")
        return lines


@contextmanager
def watching(module: SlothModule) -> Iterator[None]:
    """Evaluation mode without gradients, and training as it was afterwards."""
    noted = dict(module.watch.first_steps)
    try:
        with evaluating(module), isolate_rng(), torch.no_grad():
            yield
    finally:
        # a compressor's output on other data than the training's stops no training
        module.watch.first_steps = noted
