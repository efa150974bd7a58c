"""A video's file -> some of its frames, upright, with the times at which they are shown. Needs PyAV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.video_utils import VideoMetadata

from compressors.checks import check_at_least
from compressors.errors import UsageError, shorten_reason
from compressors.reading import check_regular_file
from compressors.registry import conform

UNKNOWN_RATE = 24.0  # frames a second where a file does not say, as transformers takes it


class VideoClip(NamedTuple):
    """Frames of a video.

    frames     (T, h, w, 3) uint8, in RGB
    metadata   how many frames the video has, how many a second, and which of them these are, by their times
    """

    frames: NDArray[np.uint8]
    metadata: VideoMetadata

    @property
    def pictures(self) -> list[Image.Image]:
        """The frames, an image each."""
        return [Image.fromarray(frame) for frame in self.frames]


def space_evenly(total: int, most: int) -> NDArray[np.intp]:
    """Numbers of at most `most` of `total` frames, the first and the last among them, as LLaVA's scripts
    choose them."""
    return np.linspace(0, total - 1, min(most, total), dtype=int)


def read_video(path: str | Path, most_frames: int) -> VideoClip:
    """At most so many frames of a video's file, evenly spaced. UsageError where it cannot be read."""
    check_at_least(1, most_frames=conform(most_frames, int, "most_frames"))
    try:
        import av
    except ImportError as error:
        raise UsageError(f"{path}: reading a video needs PyAV; pip install av") from error
    check_regular_file(Path(path))
    try:
        return decode_evenly(Path(path), most_frames)
    except (av.FFmpegError, ValueError) as error:
        raise UsageError(f"{path}: not a readable video ({shorten_reason(error)})") from error


def decode_evenly(path: Path, most_frames: int, total: int = 0) -> VideoClip:
    """The same, or an error of PyAV's; ValueError for a file without a picture. `total`: how many frames it
    has, where the file is not to be asked."""
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it has sound alone")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"  # several frames at once
        # a header need not say how many there are, as that of WebM
        total = total or stream.frames or count_frames(path)
        chosen = set(space_evenly(total, most_frames).tolist())
        rate = float(stream.average_rate or stream.guessed_rate or UNKNOWN_RATE)
        frames: list[NDArray[np.uint8]] = []
        places: list[int] = []
        first_time = None
        decoded_count = 0
        for number, frame in enumerate(container.decode(stream)):
            decoded_count += 1
            if first_time is None:
                first_time = frame.time
            if number in chosen:
                frames.append(turn_upright(frame))
                # by its time: where the rate varies, its number would say another one
                time = number / rate if frame.time is None else frame.time - (first_time or 0.0)
                places.append(round(time * rate))
            if len(frames) == len(chosen):
                break
    if not frames:
        raise ValueError("it has no picture")
    if len(frames) < len(chosen):  # the file ends before its header says so
        return decode_evenly(path, most_frames, decoded_count)
    height, width = frames[0].shape[:2]
    metadata = VideoMetadata(
        total_num_frames=total,
        fps=rate,
        width=width,
        height=height,
        duration=total / rate,
        video_backend="pyav",
        frames_indices=places,
    )
    return VideoClip(np.stack(frames), metadata)


def turn_upright(frame: Any) -> NDArray[np.uint8]:
    """A frame in RGB, turned as its file says: a phone held upright stores its pictures sideways."""
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, round(frame.rotation / 90))


def count_frames(path: Path) -> int:
    """Frames of a video's file, none of them decoded."""
    import av

    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def find_video_settings(clips: Sequence[VideoClip]) -> dict[str, Any]:
    """What a processor is told beside clips whose frames are chosen; nothing where there are none."""
    if not clips:
        return {}
    return {"do_sample_frames": False, "video_metadata": [clip.metadata for clip in clips]}
