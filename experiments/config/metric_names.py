"""What `evaluate.metric` says, without importing a metric."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compressors.errors import UsageError, quote
from compressors.registry import suggest
from experiments.config.devices import pick_device
from experiments.config.schema import Config
from experiments.registries import metrics

if TYPE_CHECKING:
    import torch

EXACT = "exact"  # the usual metric, which is in no key
DEFAULT_FAMILY = "default"  # of families that a mapping does not name
JUDGE = "judge"  # the metric that has settings of its own
JUDGE_PROMPT = (
    "Question about a picture: {question}\nReference answer: {reference}\nGiven answer: {answer}\n"
    "How far does the given answer say the same as the reference answer? Reply with one number alone, from 0 "
    "(not at all) to 1 (the same); part of the credit is a number in between, such as 0.5."
)
PLACEHOLDER = re.compile(r"{(\w+)}")
PROMPT_FIELDS = ("question", "reference", "answer")


def list_metric_names(setting: str | Mapping[str, str]) -> dict[str, str]:
    """Family -> name of its metric; `default` is among them, and families that have its metric are not."""
    names = {DEFAULT_FAMILY: setting} if isinstance(setting, str) else dict(setting)
    default = names.pop(DEFAULT_FAMILY, EXACT)
    listed_names = {}
    for family, name in sorted(names.items()):
        if name != default:
            listed_names[family] = name
    listed_names[DEFAULT_FAMILY] = default
    return listed_names


def is_exact(setting: str | Mapping[str, str]) -> bool:
    """Whether all questions are scored as usual."""
    return list_metric_names(setting) == {DEFAULT_FAMILY: EXACT}


def check_metric_names(setting: str | Mapping[str, str]) -> None:
    """UsageError for a name that no metric has."""
    names = {"": setting} if isinstance(setting, str) else setting
    for family, name in names.items():
        if name not in metrics.names():
            where = f" of family '{family}'" if family else ""
            raise UsageError(f"evaluate.metric={name}{where}: unknown metric{suggest(name, metrics.names())}")


def asks_judge(config: Config) -> bool:
    """Whether a judge scores questions of a cell."""
    return JUDGE in list_metric_names(config.evaluate.metric).values()


def check_judge_settings(config: Config) -> None:
    """UsageError for a judge that is not named, or whose prompt would not show what is judged."""
    if not asks_judge(config):
        return
    if config.judge.model is None:
        raise UsageError(
            "evaluate.metric=judge: which judge? give judge.model=FOLDER, or the hub id of a chat model"
        )
    if config.judge.prompt is None:
        return
    names = PLACEHOLDER.findall(config.judge.prompt)
    for name in names:
        if name not in PROMPT_FIELDS:
            raise UsageError(f"judge.prompt: unknown {{{quote(name)}}}{suggest(name, PROMPT_FIELDS)}")
    for name in ("reference", "answer"):
        if name not in names:
            raise UsageError(
                f"judge.prompt={quote(config.judge.prompt)}: does not have {{{name}}}; it takes "
                "{question}, {reference} and {answer}"
            )


def fill_prompt(prompt: str, question: str, reference: str, answer: str) -> str:
    """A judge's prompt with what is judged; braces in these texts stay as they are."""
    texts = {"question": question, "reference": reference, "answer": answer}
    return PLACEHOLDER.sub(lambda match: texts[match[1]], prompt)


def collect_metric_options(config: Config, device: "torch.device | None" = None) -> dict[str, dict[str, Any]]:
    """What metrics are made with, by name, beside their defaults. `device`: of a judge; None: that of work
    outside Lightning."""
    return {JUDGE: {**vars(config.judge), "device": device or pick_device(config.trainer)}}


def describe_metrics(setting: str | Mapping[str, str]) -> str:
    """What scores, in words, for a table's title; nothing for the usual metric."""
    if is_exact(setting):
        return ""
    names = list_metric_names(setting)
    default = names.pop(DEFAULT_FAMILY)
    if not names:
        return f"scored by {default}"
    words = [f"{family} by {name}" for family, name in names.items()]
    return f"scored by {default}, {', '.join(words)}"
