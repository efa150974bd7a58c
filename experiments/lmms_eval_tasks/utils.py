"""What PictureVQA's tasks do with a row of its Parquet file (experiments/data/parquet.py)."""

from typing import Any

from lmms_eval.tasks.pope import utils as pope
from PIL import Image

from experiments.metrics.answers import normalise_answer
from llm_adapters.orientation import convert_to_upright_rgb

Row = dict[str, Any]  # id, images, question, answer, family: one question

# The tasks' YAML files name functions of this module; these are the harness's own.
pope_aggregate_accuracy = pope.pope_aggregate_accuracy
pope_aggregate_precision = pope.pope_aggregate_precision
pope_aggregate_recall = pope.pope_aggregate_recall
pope_aggregate_f1_score = pope.pope_aggregate_f1_score
pope_aggregate_yes_ratio = pope.pope_aggregate_yes_ratio


def doc_to_visual(doc: Row) -> list[Image.Image]:
    """The pictures of a row, in the form that every model of the harness takes."""
    return [convert_to_upright_rgb(image) for image in doc["images"]]


def process_results(doc: Row, results: list[str]) -> dict[str, float]:
    """1 or 0, for all questions and for those of its family."""
    right = float(normalise_answer(results[0]) == normalise_answer(doc["answer"]))
    return {"accuracy": right, doc["family"]: right}


def presence(dataset: Any) -> Any:
    """The rows of yes/no questions; `dataset` is one of Hugging Face's `datasets`, which is optional here."""
    rows = [row for row, family in enumerate(dataset["family"]) if family == "presence"]
    return dataset.select(rows)


def pope_process_results(doc: Row, results: list[str]) -> dict[str, Any]:
    """As the harness's, which names questions by `question_id`."""
    return pope.pope_process_results({**doc, "question_id": doc["id"]}, results)
