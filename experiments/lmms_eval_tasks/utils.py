"""What PictureVQA's tasks do with a row of its Parquet file (experiments/data/parquet.py)."""

from lmms_eval.tasks.pope import utils as pope

from experiments.metrics.answers import normalise_answer

pope_aggregate_accuracy = pope.pope_aggregate_accuracy
pope_aggregate_precision = pope.pope_aggregate_precision
pope_aggregate_recall = pope.pope_aggregate_recall
pope_aggregate_f1_score = pope.pope_aggregate_f1_score
pope_aggregate_yes_ratio = pope.pope_aggregate_yes_ratio


def doc_to_visual(doc):
    return [image.convert("RGB") for image in doc["images"]]


def process_results(doc, results):
    """1 or 0, for all questions and for those of its family."""
    right = float(normalise_answer(results[0]) == normalise_answer(doc["answer"]))
    return {"accuracy": right, doc["family"]: right}


def presence(dataset):
    """The rows of yes/no questions."""
    return dataset.select([i for i, family in enumerate(dataset["family"]) if family == "presence"])


def pope_process_results(doc, results):
    """As the harness's, which names questions by `question_id`."""
    return pope.pope_process_results({**doc, "question_id": doc["id"]}, results)
