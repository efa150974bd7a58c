"""How often an epoch draws the rows of each file: data.train_weights and data.pretrain_weights. No torch."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.config.schema import Config
from experiments.data.records import Sample


class Share(NamedTuple):
    """The samples of a file, and how often an epoch draws them: 2.5 is all of them twice, and half of them,
    which are others in each epoch, once more."""

    rows: int
    weight: float

    @property
    def drawn(self) -> int:
        """Rows of an epoch; one at least."""
        return max(1, round(self.rows * self.weight))


def read_weights(config: Config, role: str) -> list[float]:
    """The weights of a training role's entries; nothing where they are all alike, each row once."""
    weights = list(getattr(config.data, f"{role}_weights"))
    if all(weight == 1 for weight in weights):
        return []
    return weights


def make_shares(config: Config, role: str, files: Sequence[Sequence[Sample]]) -> list[Share]:
    """How often an epoch draws the samples of each file; nothing where each row comes once."""
    return [Share(len(samples), weight) for samples, weight in zip(files, read_weights(config, role))]
