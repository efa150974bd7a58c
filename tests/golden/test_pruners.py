"""Pruners inside the LLM against what their public functions made of random tensors.

Each file of vectors names the function, the seed and the sizes in its metadata; inputs stand beside outputs.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compressors.tome import average_groups
from llm_adapters.pruning import View, registry
from llm_adapters.pruning.attention import join_heads
from llm_adapters.pruning.gprune import spread_importance
from llm_adapters.pruning.pact import Pact

FOLDER = Path(__file__).parent / "methods"


def list_kept(keep: Tensor) -> list[list[int]]:
    """Positions that are kept, row by row."""
    return [row.nonzero().flatten().tolist() for row in keep]


@pytest.mark.parametrize(("visual_pivots", "text_pivots", "percent"), [(14, 6, 50), (10, 10, 25)])
def test_dart(visual_pivots, text_pivots, percent):
    """So many pivots that the set of the released code is in the order of the prompt."""
    vectors = load_file(FOLDER / "dart.safetensors")
    expected = vectors[f"kept_{visual_pivots}_{text_pivots}_{percent}"]
    rows, length, width = vectors["normed"].shape
    visual = torch.zeros(rows, length, dtype=torch.bool)
    visual[:, 5:101] = True
    share = expected.shape[1] / 96
    pruner = registry.create(
        "dart", llm_layers=4, ratio=share, visual_pivots=visual_pivots, text_pivots=text_pivots
    )
    choice = pruner.choose_tokens(
        View(
            number=0,
            visual=visual,
            counts=[96] * rows,
            first=[96] * rows,
            raters=torch.arange(101, length).expand(rows, -1),
            attention=torch.empty(rows, 0, length),
            hidden=torch.empty(rows, length, width),
            keys=join_heads(vectors["keys"]),
            normed=vectors["normed"],
        )
    )
    assert list_kept(choice.keep) == expected.tolist()
    assert choice.counts == [expected.shape[1]] * rows


@pytest.mark.parametrize(("similarity", "temperature", "steps"), [(0.5, 0.03, 5), (0.2, 0.1, 3)])
def test_gprune(similarity, temperature, steps):
    vectors = load_file(FOLDER / "gprune.safetensors")
    tokens = vectors["tokens"]
    name = f"{similarity}_{temperature}_{steps}"
    rows, count, _ = tokens.shape
    is_token = torch.ones(rows, count, dtype=torch.bool)
    importance = spread_importance(tokens, is_token, similarity, temperature, steps)
    torch.testing.assert_close(importance, vectors[f"scores_{name}"], rtol=1e-4, atol=1e-5)
    expected = vectors[f"kept_{name}"]
    knobs = {"similarity": similarity, "temperature": temperature, "steps": steps}
    pruner = registry.create("gprune", llm_layers=4, ratio=expected.shape[1] / count, **knobs)
    # a token in front and two behind that are none of the image
    hidden = torch.cat([torch.ones(rows, 1, 12), tokens, torch.ones(rows, 2, 12)], 1)
    visual = torch.zeros(rows, count + 3, dtype=torch.bool)
    visual[:, 1:-2] = True
    raters = torch.empty(rows, 0, dtype=torch.long)
    attention = torch.empty(rows, 0, count + 3)
    view = View(0, visual, [count] * rows, [count] * rows, raters, attention, hidden)
    assert list_kept(pruner.choose_tokens(view).keep) == (expected + 1).tolist()


@pytest.mark.parametrize("distance", [0.05, 0.21, 0.6])
def test_pact(distance, monkeypatch):
    """Centres, how many tokens each stands for, and the means, with a token in front and one behind."""
    vectors = load_file(FOLDER / "pact.safetensors")
    keys, hidden = (torch.nn.functional.pad(vectors[name], (0, 0, 1, 1)) for name in ("keys", "hidden"))
    rows, length, _ = keys.shape
    visual = torch.zeros(rows, length, dtype=torch.bool)
    visual[:, 1:-1] = True
    counts = [length - 2] * rows
    raters = torch.arange(length - 1).expand(rows, -1)
    view = View(0, visual, counts, counts, raters, torch.zeros(rows, 1, length), hidden, keys)
    monkeypatch.setattr(Pact, "rate_importance", lambda *_: vectors["importance"])
    choice = registry.create("pact", llm_layers=8, distance=distance).choose_tokens(view)
    kept = vectors[f"kept_{distance}"]
    assert list_kept(choice.keep[:, 1:-1]) == list_kept(kept)
    assert choice.counts == kept.sum(1).tolist()
    sizes = choice.sizes[:, 1:-1].masked_fill(~kept, 0)
    torch.testing.assert_close(sizes, vectors[f"sizes_{distance}"])
    means = average_groups(hidden, choice.into, length)[:, 1:-1].masked_fill(~kept.unsqueeze(2), 0)
    torch.testing.assert_close(means, vectors[f"merged_{distance}"])
