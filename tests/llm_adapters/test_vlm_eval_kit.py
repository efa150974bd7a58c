"""The model class for VLMEvalKit, on tiny models; below its own base class where VLMEvalKit is installed."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from factories import make_model, make_processor, picture
from reuse_families import attached
from reuse_families import make_model as make_family_model
from reuse_families import make_processor as make_family_processor

from compressors.errors import UsageError
from llm_adapters import vlm_eval_kit

README = (Path(vlm_eval_kit.__file__).parent / "README.md").read_text()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for seed in (1, 2):
        paths.append(str(folder / f"{seed}.png"))
        picture(seed).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = make_model()
    model.save_pretrained(folder)
    make_processor(model).save_pretrained(folder)
    return folder


def answer(found, content):
    """What the model says without the class, in float32 on the CPU."""
    inputs = found.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        out = found.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return found.processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_images_stand_where_the_message_has_them(saved, images):
    found = vlm_eval_kit.SlothKit(str(saved), max_new_tokens=6, device="cpu")
    text = [{"type": "text", "value": "is this"}, {"type": "text", "value": "like that ?"}]
    first, second = ({"type": "image", "value": path} for path in images)
    said = []
    for message in ([first, *text], [text[0], first, text[1], second], text):
        content = []
        for part in message:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["value"]})
            else:
                content.append({"type": "image", "image": picture(1 + images.index(part["value"]))})
        said.append(found.generate_inner(message, "POPE"))
        assert said[-1] == answer(found, content)
    assert len(set(said)) == 3  # pictures and their places matter


def test_answers_are_greedy_whatever_it_was_saved_with(saved, images):
    model = vlm_eval_kit.SlothKit(str(saved), max_new_tokens=6, device="cpu")
    message = [{"type": "image", "value": images[0]}, {"type": "text", "value": "is this"}]
    greedy = model.generate_inner(message)
    model.model.generation_config.num_beams = 5
    seen = []
    generate = model.model.generate
    model.model.generate = lambda **options: seen.append(options) or generate(**options)
    assert model.generate_inner(message) == greedy
    assert seen[0]["num_beams"] == 1 and not seen[0]["do_sample"]


def test_another_mllm_with_a_compressor(tmp_path, images):
    for part in attached("llava"):
        part.save_pretrained(tmp_path)
    found = vlm_eval_kit.SlothKit(str(tmp_path), max_new_tokens=6, device="cpu")
    message = [{"type": "image", "value": images[0]}, {"type": "text", "value": "what ?"}]
    assert found.generate_inner(message) == answer(
        found, [{"type": "image", "image": picture(1)}, {"type": "text", "text": "what ?"}]
    )


def test_a_plain_mllm_with_parts_put_in(tmp_path, images):
    for part in (make_family_model("llava"), make_family_processor("llava")):
        part.save_pretrained(tmp_path)
    settings = {"compressor": "visionzip", "visionzip.tokens": 4, "prune": "fastv", "fastv.layer": 1}
    found = vlm_eval_kit.SlothKit(str(tmp_path), max_new_tokens=6, device="cpu", **settings)
    assert found.model.slothkit_pruning.pruner.registered_name == "fastv"
    message = [{"type": "image", "value": images[0]}, {"type": "text", "value": "what ?"}]
    assert found.generate_inner(message) == answer(
        found, [{"type": "image", "image": picture(1)}, {"type": "text", "text": "what ?"}]
    )


def test_what_is_no_readable_image(saved, tmp_path):
    found = vlm_eval_kit.SlothKit(str(saved), device="cpu")
    with pytest.raises(UsageError, match="MVBench: a question shows a video; .* read images and text"):
        found.generate_inner([{"type": "video", "value": "a.mp4"}], "MVBench")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(UsageError, match=r"POPE: .*torn.png: not a readable image \("):
        found.generate_inner([{"type": "image", "value": str(tmp_path / "torn.png")}], "POPE")
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        vlm_eval_kit.SlothKit("nowhere")


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"dtype": "float12"}, "dtype=float12: choose one of float32, bfloat16, float16"),
        ({"max_new_tokens": "8"}, "max_new_tokens='8': expected int, got str"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        (
            {"device": "cuda:99"},
            r"device=cuda:99: not to be had here \(.*\); give one that is, or leave it out",
        ),
        ({"device": "gpu"}, r"device=gpu: not to be had here \("),
        ({"revision": "v1"}, "revision=v1: .* is a folder, which has no revisions"),
    ],
)
def test_settings_that_cannot_be(saved, settings, wrong):
    with pytest.raises(UsageError, match=f"^{wrong}") as caught:
        vlm_eval_kit.SlothKit(str(saved), **settings)
    assert "\n" not in str(caught.value)


def test_a_type_by_its_name(saved):
    assert vlm_eval_kit.SlothKit(str(saved), device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.skipif(not find_spec("vlmeval"), reason="needs VLMEvalKit in an environment of its own")
def test_below_its_base_class(saved, images):
    from vlmeval.vlm.base import BaseModel

    code = re.search(r"```python\n(from llm_adapters.*?)```", README, re.S).group(1)
    names = {"BaseModel": BaseModel}
    exec(code.replace("from .base import BaseModel", ""), names)
    found = names["SlothKit"](str(saved), max_new_tokens=6, device="cpu")
    found.set_dump_image(None)
    assert not found.use_custom_prompt("POPE")
    message = [{"type": "image", "value": images[0]}, {"type": "text", "value": "what ?"}]
    assert found.generate(message, "POPE") == found.generate_inner(message)
    assert found.generate([images[0], "what ?"]) == found.generate_inner(message)
