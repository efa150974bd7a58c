"""VisionSelector learns what to choose: soft while it is trained, hard at last and whenever it is asked."""

import torch
import torch.nn.functional as F

import compressors
from compressors.visionselector import VisionSelector, assign_to_chosen, soften_choice


def build(**knobs) -> VisionSelector:
    torch.manual_seed(0)
    return compressors.create("visionselector", dim=8, **{"width": 16, "tokens": 6, **knobs})


def test_training_starts_with_soft_cells_and_ends_with_the_choice():
    """At first each chosen patch, with all that is most like it, times their p; at last as it is."""
    part, features = build(anneal=4).train(), torch.randn(2, 6, 6, 8)
    patches, kept = features.flatten(1, 2), part.kept(features)
    weights = soften_choice(part.score_patches(patches), 6)
    torch.testing.assert_close(weights.sum(1), torch.full((2,), 6.0))
    cells = F.one_hot(assign_to_chosen(patches, kept), 6).mT * weights.unsqueeze(1)
    torch.testing.assert_close(part(features), cells @ patches)
    chosen = torch.take_along_dim(patches, kept.unsqueeze(-1), 1)
    distances = [(part(features) - chosen).norm().item() for _ in range(4)]
    assert distances == sorted(distances, reverse=True) and distances[-1] == 0
    assert part.steps == 5
    torch.testing.assert_close(part.eval()(features), chosen, rtol=0, atol=0)
    assert part.steps == 5  # evaluation is no step


def test_the_second_stage_goes_on_where_the_first_has_ended():
    part, features = build(anneal=4).train(), torch.randn(1, 6, 6, 8)
    for _ in range(3):
        part(features)
    second = build(anneal=4).train()
    second.load_state_dict(part.state_dict())
    assert torch.equal(second(features), part(features))
    assert part.half().steps.dtype == torch.long  # a count of many steps does not fit half precision


def test_pieces_of_a_step_are_as_soft_as_each_other():
    """A trainer that says where steps begin may compute them in pieces."""
    part, features = build(anneal=4).train(), torch.randn(1, 6, 6, 8)
    alone = build(anneal=4).train()
    for _ in range(3):
        expected = alone(features)
        part.begin_step()
        assert torch.equal(part(features), expected) and torch.equal(part(features), expected)
    assert part.steps == alone.steps == 3
    part.eval().begin_step()
    assert part.steps == 3


def test_every_score_has_a_gradient_not_the_chosen_ones_alone():
    part, features = build().train(), torch.randn(1, 6, 6, 8)
    scores = part.score_patches(features.flatten(1, 2)).detach().requires_grad_()
    part.score_patches = lambda _: scores
    (gradient,) = torch.autograd.grad((part(features) * torch.randn(8)).sum(), scores)
    assert (gradient != 0).all()


def test_scores_far_apart_are_as_good_as_hard():
    """At the count of tokens that the gap asks for no sigmoid has a slope left."""
    scores = torch.tensor([[300.0, 280.0, -5.0, -6.0, -7.0]], requires_grad=True)
    weights = soften_choice(scores, 2)
    torch.testing.assert_close(weights.detach(), torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]))
    (gradient,) = torch.autograd.grad(weights[0, 1], scores)
    assert gradient.isfinite().all()


def test_it_finds_what_a_loss_asks_for():
    """Six patches carry what is asked for, at places that change; before training it misses many of them."""
    generator = torch.Generator().manual_seed(1)
    part = build(anneal=150)
    sign = torch.zeros(8)
    sign[3] = 4.0

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.randn(8, 36, 8, generator=generator)
        places = torch.rand(8, 36, generator=generator).argsort(1)[:, :6]
        marked = torch.zeros(8, 36).scatter(1, places, 1)
        return (features + marked.unsqueeze(2) * sign).view(8, 6, 6, 8), places.sort(1).values

    def measure_recall() -> float:
        features, places = draw()
        hits = (part.kept(features).unsqueeze(2) == places.unsqueeze(1)).any(2)
        return hits.float().mean().item()

    before = measure_recall()
    optimizer = torch.optim.AdamW(part.parameters(), lr=1e-2)
    part.train()
    for _ in range(150):
        features, _ = draw()
        loss = -part(features)[..., 3].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.6 < 0.9 < measure_recall()


def test_the_scorer_learns_as_long_as_the_choice_is_soft():
    """Steps of an earlier stage count, too."""
    part, features = build(anneal=4).train(), torch.randn(1, 6, 6, 8)
    sizes = []
    for _ in range(6):
        part.zero_grad()
        (part(features) * torch.randn(8)).sum().backward()
        sizes.append(part.query.weight.grad.abs().sum().item())
    assert min(sizes[:4]) > 0 and sizes[4:] == [0, 0]
