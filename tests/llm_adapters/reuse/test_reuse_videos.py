"""Videos of models with a compressor attached: compressed as images, as before, or refused."""

import numpy as np
import pytest
import torch
from reuse_families import SAP, family_params, make_model, make_processor, train_loss

from compressors.errors import UsageError
from llm_adapters import reuse

FRAMES = 4
AS_IMAGES = ("internvl", "smolvlm")  # their processors give frames as images
AS_BEFORE = ("qwen2_vl", "qwen2_5_vl", "exaone4_5", "llava_next_video")
REFUSED = (
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "llava_onevision",
    "kimi_k25",
    "perception_lm",
)


def make_inputs(family: str, processor) -> dict:
    """A video of noise and a question."""
    text = "<vision_start><video><vision_end> What?" if "vl" in family or "_5" in family else "<video> What?"
    if "qwen2" in family or family == "exaone4_5":  # which enlarge small ones
        processor.video_processor.size = {"shortest_edge": 24 * 24, "longest_edge": 24 * 24 * 4}
    frames = np.random.default_rng(0).integers(0, 255, (FRAMES, 24, 24, 3), dtype=np.uint8)
    batch = processor(text=[text], videos=[frames], do_sample_frames=False, return_tensors="pt")
    return dict(batch)


@pytest.mark.parametrize("family", family_params(*AS_IMAGES))
def test_frames_go_through_the_compressor(family):
    """Fewer placeholders than before for each, and a gradient."""
    model, processor = make_model(family), make_processor(family)
    before = (make_inputs(family, processor)["input_ids"] == model.config.image_token_id).sum()
    reuse.attach(model, processor, **SAP)
    batch = make_inputs(family, processor)
    after = (batch["input_ids"] == model.config.image_token_id).sum()
    # nine tokens of a crop have become four; SmolVLM's crops are more than its frames
    assert after * 9 == before * 4 and after >= FRAMES * 4
    train_loss(model, batch).backward()
    assert any(p.grad.abs().sum() > 0 for p in model.slothkit.compressor.parameters())
    assert model.generate(**batch, max_new_tokens=2).shape[0] == 1


@pytest.mark.parametrize("family", family_params(*AS_BEFORE))
def test_videos_that_are_encoded_apart_are_as_before(family):
    model, processor = make_model(family), make_processor(family)
    batch = make_inputs(family, processor)
    with torch.no_grad():
        logits = model(**batch).logits
        reuse.attach(model, processor, **SAP)
        assert torch.equal(model(**make_inputs(family, processor)).logits, logits)


@pytest.mark.parametrize("family", family_params(*REFUSED))
def test_videos_that_would_be_half_compressed_are_refused(family):
    model, processor = make_model(family), make_processor(family)
    plain = make_inputs(family, processor)
    with torch.no_grad():
        logits = model(**plain).logits
    reuse.attach(model, processor, **SAP)
    for call in (model, model.generate):
        with pytest.raises(UsageError, match="give the frames as images, or detach") as caught:
            call(**make_inputs(family, processor))
        assert "\n" not in str(caught.value)
    reuse.detach(model, processor)
    with torch.no_grad():
        torch.testing.assert_close(model(**make_inputs(family, processor)).logits, logits)
