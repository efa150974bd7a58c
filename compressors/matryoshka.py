"""Nested token sets: Matryoshka multimodal models (M3), arXiv 2405.17430, and MQT, arXiv 2405.19315.

A wrapper around any other compressor, its host. It trains the host at several token counts, coarser ones made
from finer ones, and picks one of them when asked: one training run for every budget.

    host with a grid     the grid average-pooled by a scale s (M3)        9*9 -> 81, 25, 9 at scales 1, 2, 4
    host with queries    the first ceil(Q / s^2) tokens (MQT)             64 -> 64, 16, 4

Selectors and mergers are no hosts, nor is slothmix with diverse groups: their tokens are in raster order, and
the first are the top of the image.

    H*W -> the host's tokens at the finest scale        729 -> 81 behind avg_pool

Before each training step `draw` takes a scale, or `forward` in trainers that know nothing of it. The sequence
has room for the finest, and whoever builds it masks the places that are left (`visible`). In evaluation there
is one scale, the finest or what `pick` was told, and nothing to mask.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from compressors.avg_pool import average_windows
from compressors.base import Compressor, MaybeTensor, register, registry
from compressors.checks import check_at_least
from compressors.errors import UsageError, quote
from compressors.grid import count_windows


@register("matryoshka")
class Matryoshka(Compressor):
    """`host`, a compressor's name, with its `knobs`, trained at `scales` (1: all of its tokens)."""

    def __init__(
        self,
        dim: int,
        llm_dim: int | None = None,
        *,
        host: str = "avg_pool",
        knobs: dict | None = None,
        scales: tuple[int, ...] = (1, 2, 4),
    ):
        super().__init__()
        if not scales:
            raise UsageError("scales=(): give at least one, such as (1, 2, 4)")
        for index, scale in enumerate(scales):
            check_at_least(1, **{f"scales[{index}]": scale})
        if host == "matryoshka":
            raise UsageError("host=matryoshka: choose another compressor, it cannot be its own host")
        context = {"dim": dim}
        if llm_dim is not None:
            context["llm_dim"] = llm_dim
        try:
            self.host: Compressor = registry.create(host, **context, **(knobs or {}))
        except UsageError as error:
            where = f"host={quote(host)}"
            if knobs:
                where += f", knobs={quote(knobs)}"
            raise UsageError(f"{where}: {error}") from error
        if self.host.varies:
            raise UsageError(
                f"host={host}: its images have token counts of their own, which scales would change"
            )
        if self.host.raster_order:
            own_grid = ""
            if host == "slothmix":
                own_grid = "take knobs={groups: windows}, or "
            raise UsageError(
                f"host={host}: its tokens are in raster order: the first are the image's top; {own_grid}"
                "choose one with a grid, such as avg_pool, or with queries, such as resampler"
            )
        if self.host.keeps_positions:
            raise UsageError(f"host={host}, positions=keep: averages of its tokens stand at no patch")
        # what the contract asks of a compressor, the host answers
        self.out_dim = self.host.out_dim
        self.projects = self.host.projects
        self.needs_text = self.host.needs_text
        self.needs_projected = self.host.needs_projected
        self.needs_levels = self.host.needs_levels
        self.needs_cues = self.host.needs_cues
        self.image_rate = self.host.image_rate
        self.scales = tuple(sorted(set(scales)))
        self.choices = self.scales  # of which `draw` takes one
        self.drawn = self.scales[0]
        self.draws_itself = True  # until a trainer does

    @property
    def draws(self) -> bool:
        return len(self.choices) > 1

    def draw(self) -> None:
        """A scale for the next training step, from torch's global generator; a picked one stays."""
        self.draws_itself = False
        self._take_scale()

    def begin_step(self) -> None:
        self.host.begin_step()

    def _take_scale(self) -> None:
        """One of the scales, each as likely."""
        index = int(torch.randint(len(self.choices), ()))
        self.drawn = self.choices[index]

    def pick(self, scale: int) -> None:
        """From now on this scale alone, without places for finer ones; a model's processor has to follow, as
        `Compressor.pick` says."""
        if scale not in self.scales:
            raise UsageError(f"scale={scale}: choose one of {', '.join(map(str, self.scales))}")
        self.choices = (scale,)
        self.drawn = scale

    @property
    def finest(self) -> int:
        """The one whose tokens the sequence has room for."""
        return self.choices[0]

    @property
    def scale(self) -> int:
        """What `forward` makes: the finest, or in training what was drawn."""
        return self.drawn if self.training else self.finest

    def _count_tokens(self, height: int, width: int, scale: int) -> int:
        """How many tokens a scale has."""
        grid = self.host.out_grid(height, width)
        if grid is None:
            return -(-self.host.num_tokens(height, width) // scale**2)  # rounded up
        rows, columns = count_windows(*grid, scale, "ceil")
        return rows * columns

    def out_grid(self, height: int, width: int) -> tuple[int, int] | None:
        grid = self.host.out_grid(height, width)
        if grid is None:
            return None
        return count_windows(*grid, self.finest, "ceil")

    def num_tokens(self, height: int, width: int) -> int:
        return self._count_tokens(height, width, self.finest)

    def visible(self, height: int, width: int) -> int:
        return self._count_tokens(height, width, self.scale)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        if self.training and self.draws_itself:
            self._take_scale()
        height, width = features.shape[1:3]
        tokens = self.host(features, text, text_mask)
        grid = self.host.out_grid(height, width)
        if grid is None:
            tokens = tokens[:, : self.visible(height, width)]
        else:
            rows, _ = grid
            pooled = average_windows(rearrange(tokens, "b (h w) c -> b h w c", h=rows), self.scale, "ceil")
            tokens = rearrange(pooled, "b h w c -> b (h w) c")
        # a coarser scale leaves places at the end empty, which `visible` has masked
        empty = self.num_tokens(height, width) - tokens.shape[1]
        return F.pad(tokens, (0, 0, 0, empty))

    def attention(
        self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None
    ) -> MaybeTensor:
        """The host's, at all of its tokens."""
        return self.host.attention(features, text, text_mask)

    def extra_repr(self) -> str:
        return f"scales={self.scales}, scale={self.scale}"
