"""Videos made on the spot, in files. Needs PyAV."""

from fractions import Fraction
from pathlib import Path

import numpy as np

FRAMES = 20
GREY_STEP = 12  # of one frame to the next
SIZE = 32


def write_video(path: Path, frames: int = FRAMES, codec: str = "mpeg4") -> Path:
    """Grey frames, each brighter than the one before."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.full((SIZE, SIZE, 3), GREY_STEP * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
