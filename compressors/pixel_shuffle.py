"""Pixel shuffle (space to depth), InternVL 1.5, arXiv 2404.16821; also Idefics3, SmolVLM, Llama 4.

The r x r patches of a window become one token of r^2 C channels: nothing is lost, the projector has to sort
it out. InternVL then applies LayerNorm - Linear - GELU - Linear (`projector=True`).

    H*W*C -> (H/r) * (W/r) * r^2 C        1024 -> 256 at r = 2

Channel orders in the field:

    space_channel   b (h r1) (w r2) c -> b h w (r1 r2 c)    InternVL, Idefics3, SmolVLM, Llama 4
    channel_space   b (h r1) (w r2) c -> b h w (c r1 r2)    torch.pixel_unshuffle, Mistral 3
"""

from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import check_choice, require_llm_dim
from compressors.grid import GridPolicy, WindowCompressor, fit_to_windows

ChannelOrder = Literal["space_channel", "channel_space"]
CHANNELS = {"space_channel": "(r1 r2 c)", "channel_space": "(c r1 r2)"}


@register("pixel_shuffle")
class PixelShuffle(WindowCompressor):
    """Windows of `rate` x `rate` patches, stacked in the channels.

    Every token has the same width, so on a ragged grid `ceil` fills with zeros as `pad` does.
    """

    def __init__(
        self,
        dim: int,
        llm_dim: int | None = None,
        *,
        rate: int = 2,
        order: ChannelOrder = "space_channel",
        projector: bool = False,
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(rate, grid_policy)
        check_choice(ChannelOrder, order=order)
        stacked = rate * rate * dim
        self.order = order
        self.projects = projector
        self.out_dim = stacked
        self.projector: nn.Module = nn.Identity()
        if projector:
            self.out_dim = require_llm_dim(llm_dim, "pixel_shuffle with projector=true")
            self.projector = nn.Sequential(
                nn.LayerNorm(stacked),
                nn.Linear(stacked, self.out_dim),
                nn.GELU(),
                nn.Linear(self.out_dim, self.out_dim),
            )

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        fitted, _ = fit_to_windows(features, self.rate, self.grid_policy)
        pattern = f"b (h r1) (w r2) c -> b (h w) {CHANNELS[self.order]}"
        stacked = rearrange(fitted, pattern, r1=self.rate, r2=self.rate)
        return self.projector(stacked)
