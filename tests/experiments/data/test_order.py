"""Batches of rows of like length: what an epoch reads, in which order, and where a resumed run goes on."""

from types import SimpleNamespace

import pytest
import torch

from experiments.config.schema import Optimisation
from experiments.data.llava import Sample
from experiments.data.loader import Conversations
from experiments.data.order import MEGABATCH, Length, Order
from llm_adapters.conversation import Turn


@pytest.fixture
def lengths():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, 1000, (1003,), generator=generator).tolist()
    return [Length(i % 5 > 0, n) for i, n in enumerate(tokens)]


def grouped(lengths, seed=3, **changes):
    settings = {"batch_size": 8, "epochs": 2, "group_by_length": True, **changes}
    return Order(len(lengths), Optimisation(**settings), seed, lengths)


def test_every_sample_once_an_epoch(lengths):
    order = grouped(lengths)
    batches = list(order.batches())
    assert len(batches) == 250 and all(len(batch) == 8 for batch in batches)
    for epoch in (batches[:125], batches[125:]):
        read = [i for batch in epoch for i in batch]
        assert len(set(read)) == len(read) == 1000
    assert sorted(order.permutation(0)) == list(range(1003))
    assert batches[:125] != batches[125:]


def test_a_batch_is_of_one_kind_and_of_like_length(lengths):
    spread = {}
    for name, order in (("grouped", grouped(lengths)), ("any", Order(1003, Optimisation(batch_size=8), 3))):
        found = [[lengths[i] for i in batch] for batch in order.batches()]
        pure = [b for b in found if len({length.images for length in b}) == 1]
        spread[name] = len(found) - len(pure), [max(b).tokens - min(b).tokens for b in pure]
    assert spread["grouped"][0] <= 2 < spread["any"][0]  # the rest of both kinds, once an epoch
    assert max(spread["grouped"][1]) < min(spread["any"][1])


def test_short_and_long_batches_alternate(lengths):
    longest = [max(lengths[i].tokens for i in batch) for batch in grouped(lengths, epochs=1).batches()]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    first, second = longest[: len(longest) // 2], longest[len(longest) // 2 :]
    assert abs(sum(first) / len(first) - sum(second) / len(second)) < 150  # of 990: no curriculum


def test_it_goes_on_from_any_step(lengths):
    whole = list(grouped(lengths).batches())
    for start in (0, 1, 60, 124, 125, 126, 249):
        assert list(grouped(lengths).batches(start)) == whole[start:]
    assert list(grouped(lengths, seed=4).batches()) != whole


def test_fewer_samples_than_a_batch_or_a_megabatch(lengths):
    assert [sorted(batch) for batch in grouped(lengths[:5]).batches()] == [[0, 1, 2, 3, 4]] * 2
    count = MEGABATCH * 8 + 3
    assert len({i for batch in grouped(lengths[:count], epochs=1).batches() for i in batch}) == count - 3


def test_lengths_count_words_and_visual_tokens():
    processor = SimpleNamespace(crops=5, image_tokens=9)
    samples = [
        Sample("a", (), (Turn("one two", "three"), Turn("four", "five six"))),
        Sample("b", ("p", "q"), (Turn("one", "two"),)),
    ]
    found = Conversations(samples, SimpleNamespace(processor=processor)).lengths()
    assert found == [Length(False, 6), Length(True, 2 + 2 * 5 * 9)]
