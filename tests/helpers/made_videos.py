"""Videos made on the spot, in files. Needs PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

FRAMES = 20
GREY_STEP = 12  # of one frame to the next
SIZE = 32


def encode_video(path: Path, pictures: Sequence[np.ndarray], times: Sequence[int] | None = None) -> Path:
    """Pictures (h, w, 3) at ten a second, or at these times in tenths of a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for number, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_greys(count: int) -> list[np.ndarray]:
    """Grey pictures, each brighter than the one before."""
    return [np.full((SIZE, SIZE, 3), GREY_STEP * number, np.uint8) for number in range(count)]


def write_video(path: Path, frames: int = FRAMES) -> Path:
    """Grey frames, each brighter than the one before."""
    return encode_video(path, make_greys(frames))


def write_varying_video(path: Path, times: Sequence[int]) -> Path:
    """Such frames, shown at these times, in tenths of a second."""
    return encode_video(path, make_greys(len(times)), times)


def write_turned_video(path: Path, degrees: int) -> Path:
    """A wide video, green along its upper edge, whose header says that players turn it clockwise."""
    pixels = np.zeros((SIZE, 2 * SIZE, 3), np.uint8)
    pixels[: SIZE // 4, :, 1] = 250
    encode_video(path, [pixels] * 3)
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
