"""What `evaluate.metric` says, without importing a metric."""

from collections.abc import Mapping

from compressors.errors import UsageError
from compressors.registry import suggest
from experiments.registries import metrics

EXACT = "exact"  # the usual metric, which is in no key
DEFAULT_FAMILY = "default"  # of families that a mapping does not name


def list_metric_names(setting: str | Mapping[str, str]) -> dict[str, str]:
    """Family -> name of its metric; `default` is among them, and families that have its metric are not."""
    names = {DEFAULT_FAMILY: setting} if isinstance(setting, str) else dict(setting)
    default = names.pop(DEFAULT_FAMILY, EXACT)
    others = {family: name for family, name in sorted(names.items()) if name != default}
    return {**others, DEFAULT_FAMILY: default}


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
