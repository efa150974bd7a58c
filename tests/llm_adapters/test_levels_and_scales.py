"""Compressors that read several levels of the tower, and one that is trained at several token counts."""

import pytest
import torch
from factories import make_batch, make_model, make_processor, picture

from compressors.errors import UsageError
from llm_adapters.conversation import IMAGE, Template, Turn

ROWS = [
    (
        [Turn(f"{IMAGE}\nWhat is this?", "A dog."), Turn(f"And {IMAGE} that?", "The cat")],
        [picture(1), picture(2)],
    ),
    ([Turn(f"{IMAGE}\nWhat is that?", "red")], [picture(3)]),
    ([Turn("Hi", "no")], []),
]


def make(compressor, **knobs):
    return make_model("llama", compressor, "embq", compressor_knobs=knobs, prompt=Template(system=""))


def test_levels_reach_the_compressor_and_not_the_query_module():
    model = make("token_packer", levels=[1, -2])
    batch = make_batch(make_processor(model), ROWS)
    features = model.get_image_features(batch["pixel_values"])
    assert features.shape[-1] == 3 * model.vision_tower.dim
    expected = model(**batch).logits
    del batch["pixel_values"]
    torch.testing.assert_close(model(**batch, vision_features=features).logits, expected)
    seen = []
    model.query_module.register_forward_pre_hook(lambda _, args: seen.append(args[3].shape[-1]))
    changed = features.clone()
    changed[..., model.vision_tower.dim :] += 1
    assert not torch.equal(model(**batch, vision_features=changed).logits, expected)
    assert seen == [model.vision_tower.dim]


def test_levels_that_the_tower_has_not():
    with pytest.raises(UsageError, match="level -1: this tower was built with select_layer=-2"):
        make("token_packer", levels=[1, -1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_drawn_scale_is_the_picked_one(side):
    """Masked places are as good as none: the same loss and logits as from the shorter sequence."""
    model = make("matryoshka", host="ldp", knobs={"rate": 1}, scales=[1, 2, 3])
    image = model.config.image_token_id
    long = make_batch(make_processor(model), ROWS, side)
    model.compressor.train().draw()  # as a trainer does
    model.compressor.drawn = 2
    found = model(**long)
    model.compressor.pick(2)
    short = make_batch(make_processor(model), ROWS, side)
    assert short["input_ids"].shape[1] < long["input_ids"].shape[1]
    expected = model(**short)
    torch.testing.assert_close(found.loss, expected.loss)
    one, other = (
        output.logits[batch["attention_mask"].bool() & (batch["input_ids"] != image)]
        for output, batch in ((found, long), (expected, short))
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
