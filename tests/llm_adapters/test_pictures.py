"""A picture gives the same pixels however it comes: as training reads it from a file, and in other ways."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from factories import make_processor, picture
from PIL import Image

from compressors.errors import UsageError
from experiments.data import llava
from experiments.inspection.conversation import Chat
from experiments.models import saved
from llm_adapters.images import load_picture
from llm_adapters.lmms_eval.requests import collect_media

SIZE = (40, 24)


def make_sideways():
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(size=SIZE), "jpg", {"exif": exif}


def make_16_bits():
    ramp = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[::-1]) * 68
    return Image.fromarray(ramp), "png", {}


def make_palette_with_alpha():
    return picture(size=SIZE).quantize(16), "png", {"transparency": bytes(range(0, 256, 16))}


def make_alpha():
    image = picture(size=SIZE).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    return image, "png", {}


KINDS = {
    "sideways": make_sideways,
    "16 bits": make_16_bits,
    "palette": make_palette_with_alpha,
    "alpha": make_alpha,
    "grey with alpha": lambda: (picture(size=SIZE).convert("LA"), "png", {}),
    "CMYK": lambda: (picture(size=SIZE).convert("CMYK"), "jpg", {}),
    "CMYK TIFF": lambda: (picture(size=SIZE).convert("CMYK"), "tiff", {}),
    "black and white": lambda: (picture(size=SIZE).convert("1"), "png", {}),
    "animation": lambda: (picture(size=SIZE).quantize(8), "gif", {}),
}


@pytest.fixture
def processor(model):
    return make_processor(model)


@pytest.fixture(params=KINDS)
def sample(request, tmp_path):
    """A sample of one picture of a kind, as training has it."""
    image, ending, options = KINDS[request.param]()
    path = tmp_path / f"a.{ending}"
    image.save(path, **options)
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A fox."}]
    (tmp_path / "data.json").write_text(json.dumps([{"image": path.name, "conversations": turns}]))
    return llava.load_samples(tmp_path / "data.json")[0]


def test_every_way_gives_the_pixels_of_training(sample, processor):
    path = sample.images[0]
    content = path.read_bytes()
    text = base64.b64encode(content).decode()
    trained = llava.open_image(sample)
    assert trained.mode == "RGB" and trained.size == llava.read_image_size(sample)
    pixels = processor.pixels([trained])
    ways = {
        "path": path,
        "name": str(path),
        "bytes": content,
        "base64": text,
        "data URL": f"data:image/png;base64,{text}",
        "PIL": Image.open(path),
        "row": {"bytes": content, "path": "a.png"},
        "row without bytes": {"bytes": None, "path": str(path)},
        "lmms-eval": collect_media([Image.open(path)], "task", 0)[0],
        "chat": saved.open_picture(path),
    }
    for way, source in ways.items():
        assert np.array_equal(load_picture(source), trained), way
        message = {"role": "user", "content": [{"type": "image", "image": source}]}
        message["content"].append({"type": "text", "text": "What?"})
        batch = processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt")
        assert torch.equal(batch["pixel_values"][0], pixels), way


def test_a_chat_about_a_picture_in_memory_sees_it_upright(sample, model, processor):
    inputs = Chat(model, processor, Image.open(sample.images[0])).make_inputs("What?")
    assert torch.equal(inputs["pixel_values"][0], processor.pixels([llava.open_image(sample)]))


def test_the_harness_tasks_of_our_own_see_it_so(sample):
    pytest.importorskip("lmms_eval", reason="needs lmms-eval")
    from experiments.lmms_eval_tasks.utils import doc_to_visual

    [shown] = doc_to_visual({"images": [Image.open(sample.images[0])]})
    assert np.array_equal(shown, llava.open_image(sample))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays(dtype):
    """Of 8 bits, of 16, and of shares of 1."""
    grey = np.arange(256).reshape(16, 16)
    values = grey * {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    shown = np.asarray(load_picture(values.astype(dtype)[..., None].repeat(1, -1)))
    assert np.abs(shown[..., 0] - grey).max() <= (dtype == np.float32)


@pytest.mark.parametrize(
    "source",
    ["x" * 5000, b"no picture", {"bytes": None}, 7, np.zeros((2, 3, 4, 5)), "data:,"],
)
def test_what_is_no_picture_is_one_line(source):
    with pytest.raises(UsageError, match="no picture, or a damaged one") as caught:
        load_picture(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["no_such_file.png", "/no/such/cat.jpg", "./cat.png"])
def test_a_file_that_is_not_there_is_called_so(name):
    with pytest.raises(UsageError, match=rf"^image {name}: no such file$"):
        load_picture(name)


def test_32_bit_pictures_are_refused_however_they_come():
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(file, "tiff")
    for source in (file.getvalue(), Image.open(file)):
        with pytest.raises(UsageError, match="32-bit numbers .mode F.; save it with 8 bits"):
            load_picture(source)
    with pytest.raises(UsageError, match="32-bit numbers"):
        collect_media([Image.open(file)], "task", 0)
