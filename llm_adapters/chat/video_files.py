"""A video's file -> some of its frames, read by whichever decoder of transformers is installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.video_utils import VideoMetadata, load_video

from compressors.checks import check_at_least
from compressors.errors import UsageError

# transformers' name -> the package that decodes; the first that is installed is taken
DECODERS = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec", "opencv": "cv2"}


class VideoClip(NamedTuple):
    """Frames of a video.

    frames     (T, h, w, 3) uint8, in RGB
    metadata   which frames these are, and how many there are a second
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
    check_at_least(1, most_frames=most_frames)
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file; a video is a file of this machine")
    decoder = find_decoder(path)
    file: Any = str(path)  # transformers' type of what it reads leaves paths out

    def choose_frames(metadata: VideoMetadata, **_: object) -> NDArray[np.intp]:
        if metadata.total_num_frames < 1 and decoder == "pyav":  # of a header that does not say, as WebM's
            metadata.total_num_frames = count_frames(path)
        return space_evenly(metadata.total_num_frames, most_frames)

    try:
        frames, metadata = load_video(file, backend=decoder, sample_indices_fn=choose_frames)
    except Exception as error:  # decoders have errors of their own
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{path}: not a readable video ({decoder}: {reason})") from error
    frames = np.asarray(frames)
    # a header may promise frames that are not there
    metadata.frames_indices = list(map(int, metadata.frames_indices[: len(frames)]))
    return VideoClip(frames, metadata)


def count_frames(path: str | Path) -> int:
    """Frames of a video's file, each of them looked at, none decoded."""
    import av

    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def find_decoder(path: str | Path) -> str:
    """transformers' name of a decoder that is installed."""
    for decoder, package in DECODERS.items():
        if find_spec(package):
            return decoder
    packages = ", ".join(DECODERS.values())
    raise UsageError(f"{path}: no decoder of videos is installed; pip install av (or one of {packages})")


def find_video_settings(clips: Sequence[VideoClip]) -> dict[str, Any]:
    """What a processor is told beside clips whose frames are chosen; nothing where there are none."""
    if not clips:
        return {}
    return {"do_sample_frames": False, "video_metadata": [clip.metadata for clip in clips]}
