"""Greedy answers to every test question by generation, and their scores."""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from experiments.config.schema import Config
from experiments.data import llava, roles
from experiments.data.loader import SampleImages, open_feature_cache
from experiments.metrics.families import FamilyScores
from experiments.models.build import pick_device, pick_scale, silence_libraries
from experiments.registries import metrics
from experiments.runtime.progress import Reporter
from experiments.stages.train import MODEL_FOLDER
from llm_adapters import saved
from llm_adapters.conversation import Encoded, Turn
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor
from llm_adapters.pruning.calibration import calibrate_pruner

METRIC = "exact"  # of the registry; a setting where it can be chosen


def run(config: Config, inputs: dict[str, Path], out: Path, report: Reporter) -> None:
    """The stage: predictions.jsonl (one question a line) and metrics.json."""
    silence_libraries()
    device = pick_device(config.trainer.accelerator)
    model, processor = saved.load_saved_model(inputs["finetune"] / MODEL_FOLDER, device)
    if pick_scale(config, model):
        size = processor.image_processor.size
        processor.image_tokens = model.num_image_tokens(size["height"], size["width"])
    if config.prune is not None:
        set_cell_pruner(config, inputs, model, processor)
    asked = roles.load_questions(config, inputs)
    images = SampleImages(processor, open_feature_cache(inputs))
    report.announce_steps(len(asked))
    answers: dict[int, str] = {}
    for numbers in batch_by_length(asked, images, config.evaluate.batch_size):
        batch = [asked[i] for i in numbers]
        answers.update(zip(numbers, generate_answers(model, images, batch, config.evaluate.max_new_tokens)))
        report.advance_steps(len(batch))
    write_scores(asked, [answers[i] for i in range(len(asked))], model, images, out)


def batch_by_length(asked: Sequence[llava.Sample], images: SampleImages, size: int) -> Iterator[list[int]]:
    """Question numbers, those of like length together, so that little is padded."""
    lengths = [(sum(images.crops(s)), len(s.turns[0].question)) for s in asked]
    order = sorted(range(len(asked)), key=lengths.__getitem__)
    return (order[start : start + size] for start in range(0, len(order), size))


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
    with_images = (sample for sample in training_samples if sample.images)
    first_questions = [llava.split_questions([s])[0] for s in islice(with_images, model.pruner.samples)]
    asked = [sample for sample in first_questions if sample.images]
    size = config.evaluate.batch_size
    starts = range(0, len(asked), size)
    calibrate_pruner(
        model, [encode_questions(model, SampleImages(processor), asked[i : i + size]) for i in starts]
    )


def encode_questions(
    model: FlashSlothForConditionalGeneration, images: SampleImages, asked: Sequence[llava.Sample]
) -> dict[str, torch.Tensor]:
    """Inputs of a batch of one-question samples, where the model is."""
    processor = images.processor
    encoded: list[Encoded] = [processor.encode([Turn(s.turns[0].question)], images.crops(s)) for s in asked]
    batch = images.add_images(processor.collate(encoded, "left"), [images(s, len(s.images)) for s in asked])
    return {name: value.to(model.device) for name, value in batch.items() if name != "labels"}


@torch.inference_mode()
def generate_answers(
    model: FlashSlothForConditionalGeneration,
    images: SampleImages,
    asked: Sequence[llava.Sample],
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers to a batch of one-question samples."""
    processor = images.processor
    batch: dict[str, Any] = dict(encode_questions(model, images, asked))
    out = model.generate(**batch, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
    new = out[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def write_scores(
    asked: Sequence[llava.Sample],
    predictions: Sequence[str],
    model: FlashSlothForConditionalGeneration,
    images: SampleImages,
    out: Path,
) -> None:
    """Scores and what they rest on."""
    families = [s.families[0] if s.families else "all" for s in asked]
    truths = [s.turns[0].answer or "" for s in asked]
    metric = metrics.create(METRIC)
    family_scores = FamilyScores(sorted(set(families)), metric)
    family_scores.update(predictions, truths, families)
    names = name_pictures(asked)
    with (out / "predictions.jsonl").open("w") as file:
        for s, family, truth, said in zip(asked, families, truths, predictions):
            row = {
                "id": s.id,
                "images": [names[image] for image in s.images],
                "family": family,
                "question": s.turns[0].question,
                "answer": truth,
                "prediction": said,
                "correct": metric.score(said, truth) == 1,
            }
            file.write(json.dumps(row) + "\n")
    scores = {**family_scores.compute(), "efficiency": count_costs(model, images, asked)}
    if model.pruner is not None:
        scores["efficiency"]["average_visual_tokens"] = model.pruner.measured_visual_tokens()
        # with the recipe that a calibration has found
        scores["pruner"] = {model.config.pruner: model.config.pruner_knobs or {}}
    (out / "metrics.json").write_text(json.dumps(scores, indent=1))


def name_pictures(asked: Sequence[llava.Sample]) -> dict[Path, str]:
    """Every image, named from the folder that all of them are in, so that moving it changes no result."""
    places = {image: os.path.abspath(image) for s in asked for image in s.images}
    folder = os.path.commonpath([os.path.dirname(place) for place in places.values()]) if places else ""
    return {image: Path(os.path.relpath(place, folder)).as_posix() for image, place in places.items()}


def count_costs(
    model: FlashSlothForConditionalGeneration, images: SampleImages, asked: Sequence[llava.Sample]
) -> dict[str, float]:
    """Tokens of an image and a turn, and the parameters beside tower and LLM. Blind: none."""
    processor = images.processor
    if not processor.image_tokens:
        return {"visual_tokens": 0, "query_tokens": 0, "parameters_added": 0}
    added = (model.compressor, model.projector, model.query_module)
    return {
        "visual_tokens": average_image_tokens(images, asked),
        "query_tokens": processor.num_queries,
        "parameters_added": sum(p.numel() for part in added if part is not None for p in part.parameters()),
    }


def average_image_tokens(images: SampleImages, asked: Sequence[llava.Sample]) -> float:
    """Visual tokens of an image: where images differ, the mean over all that are shown."""
    crops = [count for sample in asked for count in images.crops(sample)] or [images.processor.crops]
    mean = images.processor.image_tokens * sum(crops) / len(crops)
    return int(mean) if mean.is_integer() else round(mean, 1)
