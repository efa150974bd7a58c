"""Patch merger, Qwen2-VL, arXiv 2409.12191, and Mistral Small 3.1.

Every patch is normalised, the r x r patches of a window are stacked in the channels, and an MLP brings the
stack to the LLM's width.

    qwen2_vl   LayerNorm - merge (r1 r2 c) - Linear - GELU - Linear
    mistral3   RMSNorm - merge (c r1 r2) - Linear to C - Linear - GELU - Linear, no biases

    H*W -> (H/r) * (W/r)        1296 -> 324 at r = 2, as released
"""

from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import check_choice
from compressors.grid import GridPolicy, WindowCompressor, fit_to_windows
from compressors.pixel_shuffle import CHANNELS, ChannelOrder

MergerForm = Literal["qwen2_vl", "mistral3"]


@register("patch_merger")
class PatchMerger(WindowCompressor):
    """Windows of `rate` x `rate` normalised patches, stacked and projected.

    Every token has as many channels, so on a ragged grid `ceil` fills with zeros as `pad` does.
    """

    projects = True

    def __init__(
        self,
        dim: int,
        llm_dim: int,
        *,
        rate: int = 3,
        form: MergerForm = "qwen2_vl",
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(rate, grid_policy)
        check_choice(MergerForm, form=form)
        self.out_dim = llm_dim
        stacked = rate * rate * dim
        if form == "qwen2_vl":
            self.order: ChannelOrder = "space_channel"
            self.norm: nn.Module = nn.LayerNorm(dim, eps=1e-6)
            self.mlp = nn.Sequential(nn.Linear(stacked, stacked), nn.GELU(), nn.Linear(stacked, llm_dim))
        else:
            self.order = "channel_space"
            self.norm = nn.RMSNorm(dim, eps=1e-5)
            # two linear layers without an activation between them, as released: merge, then project
            self.mlp = nn.Sequential(
                nn.Linear(stacked, dim, bias=False),
                nn.Linear(dim, llm_dim, bias=False),
                nn.GELU(),
                nn.Linear(llm_dim, llm_dim, bias=False),
            )

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        fitted, _ = fit_to_windows(features, self.rate, self.grid_policy)
        pattern = f"b (h r1) (w r2) c -> b (h w) {CHANNELS[self.order]}"
        stacked = rearrange(self.norm(fitted), pattern, r1=self.rate, r2=self.rate)
        return self.mlp(stacked)
