"""Greedy answers to every test question by generation, and their scores."""

import json
import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.config.devices import pick_device
from experiments.config.metric_names import asks_judge, collect_metric_options
from experiments.config.schema import Config
from experiments.data import llava, roles
from experiments.data.ahead import count_workers, read_ahead
from experiments.data.loader import ConversationDataset, SampleImages, open_feature_cache
from experiments.data.records import ImageFile
from experiments.metrics.chance import average_scores
from experiments.metrics.scoring import QuestionScorer, ScoredAnswer
from experiments.models.build import pick_scale, replace_compressor, silence_libraries
from experiments.models.tower_text import load_question_tokenizer
from experiments.runtime.files import write_atomic
from experiments.runtime.progress import Reporter
from experiments.stages.finite import FiniteWatch, watch_compressor
from experiments.stages.generation import decode_answers, find_cut_answers, generate_answers
from experiments.stages.own_counts import TokenCounter
from experiments.stages.questions import batch_by_length, encode_batch, encode_questions
from experiments.store.results import METRICS_FILE, PREDICTIONS_FILE
from experiments.store.store import NotFinite
from llm_adapters import saved
from llm_adapters.kv_cache import pick_caches
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor
from llm_adapters.pruning.calibration import calibrate_pruner
from llm_adapters.shared_prefix import LEAST_SHARED_TOKENS, can_share_prefix, move_inputs


def run(config: Config, inputs: dict[str, Path], out: Path, report: Reporter) -> None:
    """The stage: predictions.jsonl (one question a line) and metrics.json."""
    silence_libraries()
    model, processor = load_evaluated_model(config, inputs)
    questions = roles.load_questions(config, inputs)
    scorer = QuestionScorer(config.evaluate.metric, collect_metric_options(config))
    scorer.check_questions(questions)  # all: a family of evaluate.metric may be in none of the first
    questions = questions[: config.evaluate.limit]
    images = SampleImages(processor, open_feature_cache(inputs))
    check_question_lengths(config, model, images, questions)
    report.announce_steps(len(questions))
    answers = [""] * len(questions)
    share = processor.image_tokens >= LEAST_SHARED_TOKENS and can_share_prefix(model)
    numbers_of_batches = batch_by_length(questions, images, config.evaluate.batch_size, share)
    batches = [[questions[number] for number in numbers] for numbers in numbers_of_batches]
    encode = partial(encode_batch, images, share)
    encoded_ahead = read_ahead(encode, batches, count_workers(config.data.workers))
    cut_numbers: set[int] = set()  # of questions whose answers max_new_tokens has cut
    watch = FiniteWatch()
    caches = pick_caches(config.evaluate.cache, model, "evaluate.cache")
    counter = TokenCounter()
    with (
        llava.report_all_broken_images(questions),
        watch_compressor(model.compressor, watch),
        counter.count_tokens(model.compressor),
    ):
        for numbers, batch, encoded in zip(numbers_of_batches, batches, encoded_ahead):
            with torch.inference_mode():
                ids = generate_answers(
                    model,
                    encoded,
                    config.evaluate.max_new_tokens,
                    config.evaluate.blank_queries,
                    watch,
                    caches,
                )
            texts = decode_answers(processor, ids)
            check_batch(watch, batch, inputs["finetune"])
            for number, text, is_cut in zip(numbers, texts, find_cut_answers(model, ids)):
                answers[number] = text
                if is_cut:
                    cut_numbers.add(number)
            report.advance_steps(len(batch))
    costs = count_costs(model, images, questions, counter.find_mean())
    if asks_judge(config):
        model.cpu()  # a judge may take all of a GPU
    write_scores(questions, answers, scorer, cut_numbers, model, costs, out)


def load_evaluated_model(
    config: Config, inputs: dict[str, Path]
) -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    """The trained model as the cell evaluates it: with its compressor, scale and pruner."""
    device = pick_device(config.trainer)
    # whoever trains without half precision wants none in answers; else the device's usual
    dtype = torch.float32 if config.trainer.precision == "32" else None
    model, processor = saved.load_saved_model(inputs["finetune"] / saved.MODEL_FOLDER, device, dtype)
    is_replaced = replace_compressor(config, model)
    if is_replaced:
        processor.question_tokenizer = load_question_tokenizer(config, config.evaluated_compressor)
    if pick_scale(config, model) or is_replaced:
        # the processor was saved with the tokens that an image has in training
        processor.image_tokens = model.num_image_tokens(*processor.crop_size)
    if config.prune is not None:
        set_cell_pruner(config, inputs, model, processor)
    return model, processor


def check_question_lengths(
    config: Config,
    model: FlashSlothForConditionalGeneration,
    images: SampleImages,
    questions: list[llava.Sample],
) -> None:
    """UsageError for a question that leaves too few of the LLM's positions for an answer."""
    dataset = ConversationDataset(llava.drop_answers(questions), images)
    left_out = model.num_left_out(*images.processor.crop_size)
    dataset.check_positions(model.config.position_limit, config.evaluate.max_new_tokens, left_out)


def check_batch(watch: FiniteWatch, batch: Sequence[llava.Sample], trained: Path) -> None:
    """NotFinite if an answer to these questions came from a nan or an infinity. The answers are here, so
    that nothing is waited for."""
    first = watch.find_first()
    if first is not None:
        raise NotFinite(
            f"the {first[0]} is not finite in {len(batch)} questions from sample {batch[0].id} on; mend the "
            f"compressor, or delete {trained} if an older version has trained it, and lower finetune.lr"
        )


def set_cell_pruner(
    config: Config,
    inputs: dict[str, Path],
    model: FlashSlothForConditionalGeneration,
    processor: FlashSlothProcessor,
) -> None:
    """Set the cell's pruner; one that wants it is calibrated on the first questions of the first training
    samples that have images."""
    assert config.prune is not None  # asked for by the caller
    model.set_pruner(config.prune, **config.knobs(config.prune))
    assert model.pruner is not None  # it was set
    if not model.pruner.samples:
        return
    training_samples = roles.load_role_samples(config, inputs, "train", check_images=False)
    with_images = [sample for sample in training_samples if sample.images]
    questions = []
    for sample in with_images[: model.pruner.samples]:
        question = llava.split_questions([sample])[0]
        if question.images:  # else its images come in a later turn
            questions.append(question)
    # pixels, since the feature cache of an evaluation holds the test images alone
    images = SampleImages(processor)
    batches = []
    for start in range(0, len(questions), config.evaluate.batch_size):
        batch = questions[start : start + config.evaluate.batch_size]
        encoded = encode_questions(images, batch)
        batches.append(move_inputs(encoded, model.device))
    calibrate_pruner(model, batches)


def write_scores(
    questions: Sequence[llava.Sample],
    predictions: Sequence[str],
    scorer: QuestionScorer,
    cut_numbers: Collection[int],
    model: FlashSlothForConditionalGeneration,
    costs: dict[str, float],
    out: Path,
) -> None:
    """Write the predictions, a line a question, and metrics.json: scores, and what a question costs."""
    picture_names = name_pictures(questions)
    scores_by_family: dict[str, list[float]] = {}
    scored_answers = scorer.score_answers(predictions, questions)
    with (out / PREDICTIONS_FILE).open("w") as file:
        for number, (sample, prediction) in enumerate(zip(questions, predictions)):
            scored = scored_answers[number]
            scores_by_family.setdefault(sample.name_family(), []).append(scored.score)
            row = describe_answer(sample, prediction, scored, picture_names)
            if not scorer.is_exact:
                row["score"] = scored.score
            if scored.verdict is not None:
                row["verdict"] = scored.verdict
            if number in cut_numbers:
                row["cut"] = True
            file.write(json.dumps(row) + "\n")
    scores = {**average_scores(scores_by_family), "efficiency": costs}
    scores["cut_answers"] = len(cut_numbers)
    judged = [scored for scored in scored_answers if scored.verdict is not None]
    if judged:
        scores["verdicts"] = len(judged)
        scores["unreadable_verdicts"] = sum(not scored.is_readable for scored in judged)
    if not scorer.is_exact:
        scores["metric"] = scorer.names
    if not scorer.is_exact or any(sample.accepted for sample in questions):
        # a table is printed without the metric and all accepted answers
        scores["chance"] = scorer.score_majority_answers(questions)
    if model.pruner is not None:
        scores["efficiency"]["average_visual_tokens"] = model.pruner.measured_visual_tokens()
        # with the recipe that a calibration has found
        scores["pruner"] = {model.config.pruner: model.config.pruner_knobs or {}}
    write_atomic(out / METRICS_FILE, json.dumps(scores, indent=1))


def describe_answer(
    sample: llava.Sample, prediction: str, scored: ScoredAnswer, picture_names: dict[ImageFile, str]
) -> dict[str, Any]:
    """What a line of the predictions always has: question, answers, and whether the given one is right."""
    row: dict[str, Any] = {
        "id": sample.id,
        "images": [picture_names[image] for image in sample.images],
        "family": sample.name_family(),
        "question": sample.turns[0].question,
        "answer": sample.turns[0].answer or "",
        "prediction": prediction,
        "correct": scored.score == 1,
    }
    if sample.accepted:
        row["accepted"] = sample.accepted[0]
    return row


def name_pictures(questions: Sequence[llava.Sample]) -> dict[ImageFile, str]:
    """Every image, named from the folder that all of them are in, so that moving it changes no result."""
    places: dict[ImageFile, str] = {}
    for sample in questions:
        for image in sample.images:
            places[image] = os.path.abspath(image)
    if not places:
        return {}
    folder = os.path.commonpath([os.path.dirname(place) for place in places.values()])
    return {image: Path(os.path.relpath(place, folder)).as_posix() for image, place in places.items()}


def count_costs(
    model: FlashSlothForConditionalGeneration,
    images: SampleImages,
    questions: Sequence[llava.Sample],
    crop_tokens: float | None = None,
) -> dict[str, float]:
    """Tokens of an image and a turn, and the parameters beside tower and LLM. Blind: none. `crop_tokens`: of
    a crop on average, where that was measured."""
    processor = images.processor
    if not processor.image_tokens:
        return {"visual_tokens": 0, "query_tokens": 0, "parameters_added": 0}
    parameters = 0
    for part in (model.compressor, model.projector, model.query_module):
        if part is not None:
            parameters += sum(parameter.numel() for parameter in part.parameters())
    if crop_tokens is None:
        crop_tokens = processor.image_tokens
    return {
        "visual_tokens": average_image_tokens(images, questions, crop_tokens),
        "query_tokens": processor.num_queries,
        "parameters_added": parameters,
    }


def average_image_tokens(
    images: SampleImages, questions: Sequence[llava.Sample], crop_tokens: float
) -> float:
    """Visual tokens of an image: where images differ, the mean over all that are shown."""
    crops: list[int] = []
    for sample in questions:
        crops += images.crops(sample)
    if not crops:  # no image is shown
        return 0
    mean = crop_tokens * sum(crops) / len(crops)
    return int(mean) if mean.is_integer() else round(mean, 1)
