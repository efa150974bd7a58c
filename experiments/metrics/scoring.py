"""Which metric scores which question: `evaluate.metric`, one name or a mapping from families to names.

    evaluate.metric=anls     evaluate.metric={reading: anls, default: exact}

A metric that can stand there scores questions one by one: it has `score(said, truth)`, from 0 to 1, and may
have `read_truth(answer, question)`, which makes a truth of what the data say (`mean.py`). One that asks a
model has `judge_answers(said, truths)` too: for many at once, with what the model has said (`judge.py`).
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from compressors.errors import UsageError, quote
from compressors.registry import naming_part, suggest
from experiments.config.metric_names import DEFAULT_FAMILY, is_exact, list_metric_names
from experiments.data.records import Sample
from experiments.metrics.chance import average_scores, collect_family_answers
from experiments.registries import metrics


class ScoredAnswer(NamedTuple):
    """A score from 0 to 1. `verdict`: what a judge has said, None where none was asked; `is_readable`:
    whether a score was in it, else it counts as 0."""

    score: float
    verdict: str | None = None
    is_readable: bool = True


class QuestionScorer:
    """Scores answers, each by the metric of its question's family; `options` are what metrics are made with,
    by name. UsageError for a metric that scores whole sets of questions alone."""

    def __init__(
        self, setting: str | Mapping[str, str], options: Mapping[str, Mapping[str, Any]] | None = None
    ):
        self.names = list_metric_names(setting)
        self.is_exact = is_exact(setting)  # right or wrong, as usual
        self.metrics: dict[str, Any] = {}
        for name in self.names.values():
            metric = metrics.create(name, **(options or {}).get(name, {}))
            if not callable(getattr(metric, "score", None)):
                scoring_metrics = []
                for candidate in metrics.names():
                    if hasattr(metrics.get(candidate), "score"):
                        scoring_metrics.append(candidate)
                raise UsageError(
                    f"evaluate.metric={name}: does not score questions one by one; take "
                    f"{', '.join(scoring_metrics)}"
                )
            self.metrics[name] = metric

    def name_metric(self, question: Sample) -> str:
        """The metric of a question."""
        return self.names.get(question.name_family(), self.names[DEFAULT_FAMILY])

    def check_families(self, families: Collection[str]) -> None:
        """UsageError for a metric of a family that is none of these."""
        for family in self.names:
            if family not in families and family != DEFAULT_FAMILY:
                raise UsageError(
                    f"evaluate.metric: no question is of the family '{family}'{suggest(family, families)}"
                )

    def check_questions(self, questions: Sequence[Sample]) -> None:
        """UsageError for a family that no question has, and for a truth that a metric cannot read."""
        self.check_families({question.name_family() for question in questions})
        self.check_truths(questions)

    def check_truths(self, questions: Sequence[Sample]) -> None:
        """UsageError for a truth that its metric cannot read or score."""
        tried_families = set()
        for question in questions:
            self.read_truth(question)
            family = question.name_family()
            asks_model = hasattr(self.metrics[self.name_metric(question)], "judge_answers")
            if family not in tried_families and not asks_model:  # not all: a metric may take its time
                tried_families.add(family)
                self.score_answer(question.turns[0].answer or "", question)

    def read_truth(self, question: Sample) -> Any:
        """What the metric of a one-question sample takes as its truth."""
        name = self.name_metric(question)
        metric = self.metrics[name]
        answer: Any = question.turns[0].answer or ""
        if question.accepted:
            answer = question.accepted[0]
        if not hasattr(metric, "read_truth"):
            return answer
        with name_question(name, question), naming_part("metric", name, type(metric)):
            return metric.read_truth(answer, question.turns[0].question)

    def score_answer(self, said: str, question: Sample) -> float:
        """The score of an answer to a one-question sample, from 0 to 1. UsageError for a truth that its
        metric cannot read, and for a metric whose score is none."""
        name = self.name_metric(question)
        metric = self.metrics[name]
        truth = self.read_truth(question)
        with name_question(name, question), naming_part("metric", name, type(metric)):
            score = float(metric.score(said, truth))
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise UsageError(
                f"evaluate.metric={name}: question {quote(question.id)}: a score of {score} for "
                f"'{quote(said)}'; scores are from 0 to 1"
            )
        return score

    def score_answers(self, said: Sequence[str], questions: Sequence[Sample]) -> list[ScoredAnswer]:
        """The scores of answers to one-question samples; a judge is asked about many at once."""
        scored: dict[int, ScoredAnswer] = {}
        numbers_by_judge: dict[str, list[int]] = {}
        for number, question in enumerate(questions):
            name = self.name_metric(question)
            if hasattr(self.metrics[name], "judge_answers"):
                numbers_by_judge.setdefault(name, []).append(number)
            else:
                scored[number] = ScoredAnswer(self.score_answer(said[number], question))
        for name, numbers in numbers_by_judge.items():
            truths = [self.read_truth(questions[number]) for number in numbers]
            judge = self.metrics[name]
            with naming_part("metric", name, type(judge)):
                verdicts = judge.judge_answers([said[number] for number in numbers], truths)
            for number, verdict in zip(numbers, verdicts, strict=True):
                score = verdict.score
                scored[number] = ScoredAnswer(
                    0.0 if score is None else score, verdict.text, score is not None
                )
        return [scored[number] for number in range(len(questions))]

    def score_majority_answers(self, questions: Sequence[Sample]) -> dict[str, Any]:
        """What always giving each family's most frequent answer scores, in the form of metrics.json."""
        most_frequent = {}
        for family, answers in collect_family_answers(questions).items():
            [(most_frequent[family], _)] = Counter(answers).most_common(1)
        answers = [most_frequent[question.name_family()] for question in questions]
        scores: dict[str, list[float]] = {}
        for question, scored in zip(questions, self.score_answers(answers, questions)):
            scores.setdefault(question.name_family(), []).append(scored.score)
        return average_scores(scores)


@contextmanager
def name_question(metric: str, question: Sample) -> Iterator[None]:
    """A UsageError gets the metric and the question that it is about."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"evaluate.metric={metric}: question {quote(question.id)}: {error}") from error
