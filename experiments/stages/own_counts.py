"""How many visual tokens images have whose number follows from their content."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from compressors.base import Compressor


class TokenCounter:
    """Counts what a compressor that varies makes, on its device; nothing of another, which says it before."""

    def __init__(self) -> None:
        self._tokens: Tensor | None = None
        self._images: Tensor | None = None

    @contextmanager
    def count_tokens(self, compressor: Compressor) -> Iterator[None]:
        """Everything that the compressor returns meanwhile is counted."""
        if not compressor.varies:
            yield
            return
        hook = compressor.register_forward_hook(self._count, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _count(
        self, part: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], _: Tensor
    ) -> None:
        """The hook. Zeros fill rows that have fewer images than others."""
        assert isinstance(part, Compressor)
        features = arguments[0]
        chosen_places = keywords.get("kept")
        is_there = part.present(*arguments) if chosen_places is None else chosen_places >= 0
        assert is_there is not None  # it varies
        is_image = features[..., : part.out_dim].flatten(1).any(1)  # behind a projector zeros are not
        tokens = (is_there & is_image.unsqueeze(1)).sum()
        images = is_image.sum()
        self._tokens = tokens if self._tokens is None else self._tokens + tokens
        self._images = images if self._images is None else self._images + images

    def find_mean(self) -> float | None:
        """Tokens of an image on average; None where nothing was counted. Waits for the device."""
        if self._tokens is None or self._images is None:
            return None
        mean = self._tokens.double() / self._images.clamp(min=1)
        return round(mean.item(), 4)
