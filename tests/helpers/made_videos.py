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


def write_varying_video(path: Path, times: list[int]) -> Path:
    """Frames that are shown at these times, in tenths of a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(
                np.full((SIZE, SIZE, 3), GREY_STEP * number, np.uint8), format="rgb24"
            )
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_turned_video(path: Path, degrees: int) -> Path:
    """A wide video, green along its upper edge, whose header says that players turn it clockwise."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width, stream.height = 2 * SIZE, SIZE
        stream.pix_fmt = "yuv420p"
        pixels = np.zeros((SIZE, 2 * SIZE, 3), np.uint8)
        pixels[: SIZE // 4, :, 1] = 250
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    # ISO 14496-12: the matrix of a track's header stands behind its 40 bytes of version, times and layer
    start = content.index(b"tkhd") + len(b"tkhd") + 40
    one, minus_one, zero = (0x10000).to_bytes(4, "big"), (0xFFFF0000).to_bytes(4, "big"), bytes(4)
    turns = {
        90: [zero, one, zero, minus_one, zero],
        180: [minus_one, zero, zero, zero, minus_one],
        270: [zero, minus_one, zero, one, zero],
    }
    matrix = b"".join(turns[degrees])
    content[start : start + len(matrix)] = matrix
    path.write_bytes(content)
    return path
