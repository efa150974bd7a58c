"""Videos and several images in the composed model: frames go through the compressor as images do."""

import numpy as np
import pytest
import torch
from factories import assert_same, make_batch, make_model, make_processor, picture

from compressors.errors import UsageError
from llm_adapters.conversation import IMAGE, Turn

FRAMES = 3


def ask(video: object, text: str = "What happens?") -> list[dict]:
    """A question about a video, as a chat has it."""
    return [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": text}]}]


def make_frames() -> list:
    return [picture(seed) for seed in range(FRAMES)]


@pytest.mark.parametrize("query_module", ["embq", None])
def test_frames_are_images(query_module):
    """The same inputs as of as many images in training; each frame makes its tokens, and each counts."""
    model = make_model(query_module=query_module)
    processor = make_processor(model)
    options = {"tokenize": True, "return_dict": True}
    batch = processor.apply_chat_template(ask(make_frames()), **options)
    trained = make_batch(processor, [([Turn(f"{IMAGE * FRAMES}What happens?")], make_frames())])
    trained.pop("labels")
    assert_same(dict(batch), trained)
    visual = batch["input_ids"] == model.config.image_token_id
    assert visual.sum() == FRAMES * model.num_image_tokens()
    with torch.no_grad():
        logits = model(**batch).logits[:, -1]
        for number in range(FRAMES):
            frames = make_frames()
            frames[number] = picture(9)
            other = processor.apply_chat_template(ask(frames), **options)
            assert not torch.allclose(model(**other).logits[:, -1], logits)
    assert model.generate(**batch, max_new_tokens=2).shape[0] == 1


def test_an_array_of_frames(model):
    processor = make_processor(model)
    options = {"tokenize": True, "return_dict": True}
    array = np.stack([np.asarray(frame) for frame in make_frames()])
    assert_same(
        dict(processor.apply_chat_template(ask(array), **options)),
        dict(processor.apply_chat_template(ask(make_frames()), **options)),
    )


@pytest.mark.parametrize("video", ["cat.mp4", [], None, {"path": "cat.mp4"}])
def test_a_video_that_is_no_frames_is_refused(model, video):
    with pytest.raises(UsageError, match=r"a video that is no list of frames: .*read the file") as caught:
        make_processor(model).apply_chat_template(ask(video), tokenize=True, return_dict=True)
    assert "\n" not in str(caught.value)


def test_videos_beside_the_text_are_refused(model):
    processor = make_processor(model)
    text = processor.apply_chat_template(ask(make_frames()), tokenize=False)
    with pytest.raises(UsageError, match="the processor takes no videos"):
        processor(text=text, videos=[make_frames()])
