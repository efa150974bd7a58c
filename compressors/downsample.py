"""Down-sampling the image: the published baseline that beats many token pruners (arXiv 2510.07143).

The *image* is shrunk by `rate` before the tower, so the tower itself makes about rate^2 fewer patches; what
it makes is kept as it is. The compressor only declares `image_rate`; whoever feeds the tower does the
resizing. `out_grid` and `num_tokens` speak of the grid that they are given, which is the shrunken image's.

    H*W -> H*W of the shrunken image        378 px, patch 14, rate 3:  126 px, 9*9 = 81
"""

from compressors.base import register
from compressors.checks import check_at_least
from compressors.identity import Identity


@register("downsample")
class Downsample(Identity):
    """All patches of the image shrunk by `rate`; the tower saves work too."""

    def __init__(self, dim: int, *, rate: int = 3):
        super().__init__(dim)
        check_at_least(1, rate=rate)
        self.image_rate = rate

    def extra_repr(self) -> str:
        return f"image_rate={self.image_rate}"
