"""Videos by their files: which frames are read, and what models of every family make of them in a chat."""

import sys

import numpy as np
import pytest
import torch
from factories import make_model, make_processor
from made_videos import FRAMES, GREY_STEP, SIZE, write_turned_video, write_varying_video, write_video
from PIL import Image
from reuse_families import answers, attached, family_params
from reuse_videos import AS_IMAGES, ENCODED, Row, ask, encode_rows, is_video_placeholder, prepare

from compressors.errors import UsageError
from llm_adapters.chat import video_files
from llm_adapters.chat.video_files import find_video_settings, read_video, space_evenly
from llm_adapters.lmms_eval.requests import collect_media, make_message, show_frames_as_images, sort_out_rows

pytest.importorskip("av")


def read_numbers(frames: np.ndarray) -> list[int]:
    """Which frames these are, by their grey."""
    return np.rint(frames.mean((1, 2, 3)) / GREY_STEP).astype(int).tolist()


def test_frames_are_spaced_evenly():
    assert space_evenly(20, 5).tolist() == [0, 4, 9, 14, 19]
    assert space_evenly(20, 1).tolist() == [0]
    assert space_evenly(3, 8).tolist() == [0, 1, 2]


# a Matroska file does not say how many frames it has
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_a_file_s_frames(tmp_path, name):
    path = write_video(tmp_path / name)
    clip = read_video(path, 5)
    assert clip.frames.shape == (5, SIZE, SIZE, 3) and clip.frames.dtype == np.uint8
    assert read_numbers(clip.frames) == clip.metadata.frames_indices == [0, 4, 9, 14, 19]
    assert clip.metadata.total_num_frames == FRAMES and clip.metadata.fps == 10
    assert clip.metadata.duration == FRAMES / 10
    assert len(read_video(path, 99).frames) == FRAMES
    assert [picture.size for picture in clip.pictures] == [(SIZE, SIZE)] * 5


def test_a_file_that_ends_before_its_header_says_so(tmp_path, monkeypatch):
    """As many frames as were asked for, evenly over those that are there."""
    path = write_video(tmp_path / "clip.mkv")
    monkeypatch.setattr(video_files, "count_frames", lambda _: FRAMES + 9)
    clip = read_video(path, 5)
    assert read_numbers(clip.frames) == clip.metadata.frames_indices == [0, 4, 9, 14, 19]
    assert clip.metadata.total_num_frames == FRAMES


def test_times_are_those_at_which_frames_are_shown(tmp_path):
    """Where the rate varies, a frame's number says another time."""
    times = [0, 1, 2, 3, 4, 25, 45, 65, 85, 105]
    clip = read_video(write_varying_video(tmp_path / "clip.mkv", times), 10)
    assert read_numbers(clip.frames) == list(range(10))
    found = np.array(clip.metadata.timestamps)
    assert np.abs(found - np.array(times) / 10).max() <= 0.5 / clip.metadata.fps + 1e-6


@pytest.mark.parametrize(("degrees", "edge"), [(90, "right"), (180, "lower"), (270, "left")])
def test_a_video_that_was_held_upright_is_upright(tmp_path, degrees, edge):
    clip = read_video(write_turned_video(tmp_path / "clip.mp4", degrees), 2)
    height, width = clip.frames.shape[1:3]
    assert (height > width) == (degrees != 180)
    assert (clip.metadata.height, clip.metadata.width) == (height, width)
    green = clip.frames[0, :, :, 1].astype(int)
    quarter = SIZE // 4
    edges = {
        "left": green[:, :quarter],
        "right": green[:, -quarter:],
        "lower": green[-quarter:],
        "upper": green[:quarter],
    }
    assert max(edges, key=lambda name: edges[name].mean()) == edge


def test_what_is_no_video_is_refused_in_one_line(tmp_path, monkeypatch):
    whole = write_video(tmp_path / "clip.mp4")
    contents = {"text.mp4": b"no video", "cut.mp4": whole.read_bytes()[:200], "empty.mp4": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=rf"\A(?!.*\n).*{name}: not a readable video \(."):
            read_video(tmp_path / name, 4)
    with pytest.raises(UsageError, match=r"nowhere\.mp4: no such file"):
        read_video("nowhere.mp4", 4)
    with pytest.raises(UsageError, match="not a regular file"):
        read_video(tmp_path, 4)
    for most_frames in (0, "four", 2.5):
        with pytest.raises(UsageError, match="most_frames"):
            read_video(whole, most_frames)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"clip\.mp4: reading a video needs PyAV; pip install av"):
        read_video(whole, 4)


def test_media_of_a_question(tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    still = read_video(path, 1).pictures[0]
    still.save(tmp_path / "still.png")
    still.save(tmp_path / "still.gif")
    [clip] = collect_media([str(path)], "t", 4)
    assert len(clip.frames) == 4
    parts = make_message("Is <video> like <video>?", [clip, clip])["content"]
    assert [part["type"] for part in parts] == ["text", "video", "text", "video", "text"]
    alone = collect_media([None, tmp_path / "still.png", tmp_path / "still.gif"], "t", 0)
    assert [picture.mode for picture in alone] == ["RGB", "RGB"]
    with pytest.raises(UsageError, match=r"task t shows .*clip\.mp4, and max_num_frames=0"):
        collect_media([path], "t", 0)


def test_frames_are_images_where_a_question_shows_more_than_videos_of_one_length(tmp_path):
    long, short = (write_video(tmp_path / f"{frames}.mp4", frames) for frames in (9, 3))
    single = write_video(tmp_path / "single.mp4", 1)
    picture = read_video(long, 1).pictures[0]
    assert [len(clip.frames) for clip in collect_media([long, long], "t", 4)] == [4, 4]
    for visuals, count in (([long, picture], 5), ([long, short], 7), ([single], 1)):
        media = collect_media(visuals, "t", 4)
        assert len(media) == count and all(isinstance(medium, Image.Image) for medium in media)


def test_rows_of_a_batch_are_alike(tmp_path):
    short, long = (read_video(write_video(tmp_path / f"{n}.mp4", n), 8) for n in (3, 9))
    picture = long.pictures[0]
    rows = [
        ("a", [short]),
        ("b", []),
        ("c", [long]),
        ("d", [picture]),
        ("e", [short]),
        ("f", [long, picture]),
    ]
    assert sort_out_rows(rows) == [[0, 4], [1], [2], [3], [5]]


@pytest.mark.parametrize("family", family_params(*ENCODED, *AS_IMAGES))
def test_an_attached_model_reads_a_file(family, tmp_path):
    """As many placeholders as the same frames have beside a text; batched is single."""
    model, processor = attached(family)
    prepare(family, processor)
    clips = [read_video(write_video(tmp_path / f"{number}.mp4", 8 + number), 4) for number in range(2)]
    chats = [[make_message("What is this?", clips[:1])], [make_message("And is it a cat?", clips[1:])]]

    def encode(numbers) -> dict:
        told = {"padding": True, **find_video_settings([clips[number] for number in numbers])}
        return dict(
            processor.apply_chat_template(
                [chats[number] for number in numbers],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                processor_kwargs=told,
            )
        )

    batch = encode([0, 1])
    plain = encode_rows(processor, [Row(ask(family, marked=True), videos=[clip.frames]) for clip in clips])
    assert torch.equal(*(is_video_placeholder(model, inputs).sum(1) for inputs in (batch, plain)))
    assert answers(model, batch) == [answers(model, encode([number]))[0] for number in (0, 1)]


def test_a_composed_model_reads_frames_as_images(tmp_path):
    model = make_model()
    processor = make_processor(model)
    media = show_frames_as_images([read_video(write_video(tmp_path / "clip.mp4"), 3)])
    batch = processor.apply_chat_template(
        [make_message("What is this?", media)], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert (batch["input_ids"] == processor.image_token_id).sum() == 3 * model.num_image_tokens()
    assert batch["pixel_values"].shape[1] == 3
