"""Tiles by the shape of each image, in a cell: cached features, batches, what is reported."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.config.cells import make_cells
from experiments.config.schema import Config
from experiments.data import llava
from experiments.data.feature_cache import FeatureCache
from experiments.data.loader import ConversationDataset, SampleImages
from experiments.models.build import build_model
from experiments.runtime.progress import Reporter
from experiments.stages import evaluate, features
from experiments.store.plan import plan_stages
from llm_adapters.conversation import IMAGE, Turn
from llm_adapters.processing import FlashSlothProcessor

SHAPES = ((144, 144), (500, 144), (144, 400), (400, 400), (60, 40), (320, 150))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Conversations about noise of several shapes: one image, two in different turns, none."""
    folder = tmp_path_factory.mktemp("tiles")
    for i, (width, height) in enumerate(SHAPES):
        noise = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    shown = [[0], [1], [2, 3], [], [4], [5, 1]]
    records = [
        {
            "id": str(i),
            "image": [f"{n}.png" for n in images],
            "conversations": [
                turn
                for n in (images or [0])
                for turn in (
                    {"from": "human", "value": ("<image>\n" if images else "") + "what is this ?"},
                    {"from": "gpt", "value": "a red heart"},
                )
            ],
        }
        for i, images in enumerate(shown)
    ]
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json"


def cell(data: Path, *overrides: str) -> Config:
    roles = [f"data.{role}=[{data}]" for role in ("pretrain", "train", "test")]
    (found,) = make_cells(
        parse_settings([*roles, "compressor=sap+embq", "trainer.accelerator=cpu", *overrides])
    )
    return found.config


@pytest.fixture(scope="module")
def config(data) -> Config:
    return cell(data, "image.tiles=2", "image.layout=anyres")


def cached(config: Config, out: Path) -> FeatureCache:
    out.mkdir(parents=True, exist_ok=True)
    features.run(config, {}, out, Reporter(), ["train"])
    return FeatureCache(out)


@pytest.fixture(scope="module")
def cache(config, tmp_path_factory) -> FeatureCache:
    return cached(config, tmp_path_factory.mktemp("out") / "features/key")


@pytest.fixture(scope="module")
def parts(config):
    model, processor = build_model(config)
    return model.eval(), processor


def test_cached_features_are_the_running_towers(cache, parts, data):
    model, processor = parts
    counts = []
    for i, shape in enumerate(SHAPES):
        path = data.parent / f"{i}.png"
        pixels = processor.pixels([Image.open(path).convert("RGB")])
        with torch.no_grad():
            found = model.get_image_features(pixels.unsqueeze(0))[0]
        counts.append(len(pixels))
        assert cache.crops(path) == len(pixels) == processor.tiling.num_crops(*shape)
        torch.testing.assert_close(cache[path].float(), found, atol=2e-2, rtol=2e-3)  # float16 on disk
    assert counts == [1, 4, 4, 5, 1, 3]
    assert len(cache.features) == sum(counts)


def test_a_killed_run_goes_on_at_the_right_crop(config, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "IMAGES_PER_BATCH", 2)
    encode, calls = features.encode_crops, []

    def dying(tower, pixels, *levels):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(tower, pixels, *levels)

    monkeypatch.setattr(features, "encode_crops", dying)
    out = tmp_path / "features/key"
    with pytest.raises(KeyboardInterrupt):
        cached(config, out)
    assert calls == [5, 9, 4] and (out / features.PROGRESS_FILE).read_text() == "4"
    again = cached(config, out)
    assert calls[3:] == [4] and not (out / features.PROGRESS_FILE).exists()
    for path in cache.places:
        torch.testing.assert_close(again[path].float(), cache[path].float(), atol=2e-2, rtol=2e-3)


def test_a_killed_run_over_other_images_begins_again(config, cache, tmp_path):
    """The same images in another order have the same key: what was computed is then of other rows."""
    out = tmp_path / "features/key"
    cached(config, out)
    names = json.loads((out / features.IMAGES_FILE).read_text())
    (out / features.IMAGES_FILE).write_text(json.dumps(names[::-1]))
    array = np.load(out / features.FEATURES_FILE, mmap_mode="r+")
    array[:] = 0  # as if it were another image's
    array.flush()
    (out / features.PROGRESS_FILE).write_text(str(len(names)))
    again = cached(config, out)
    for path in cache.places:
        torch.testing.assert_close(again[path].float(), cache[path].float(), atol=2e-2, rtol=2e-3)


def without_tiles(config: Config) -> Config:
    """A layout on its own, which a command line is refused, and a cell of a folder may have."""
    return replace(config, image=replace(config.image, tiles=1, layout="anyres"))


def test_a_fixed_number_of_crops_has_no_table(data, config, tmp_path):
    for name, found_config, crops in (
        ("a", cell(data, "image.tiles=2"), 5),
        ("b", without_tiles(config), 1),
    ):
        found = cached(found_config, tmp_path / "features" / name)
        assert sorted(path.name for path in (tmp_path / "features" / name).iterdir()) == [
            "features.npy",
            "images.json",
        ]
        assert len(found.features) == len(SHAPES) * crops
        assert {found.crops(data.parent / f"{i}.png") for i in range(len(SHAPES))} == {crops}


def test_cached_and_running_batches_agree(parts, cache, data):
    """Placeholders, turns and loss of rows with 0, 1, 4, 7 and 9 crops."""
    model, processor = parts
    samples, losses = llava.load_samples(data), []
    for source in (cache, None):
        rows = ConversationDataset(samples, SampleImages(processor, source), 512)
        batch = processor.collate([rows[i][0] for i in range(len(rows))])
        crops = (batch["image_turn"] > 0).sum(1)
        assert crops.tolist() == [1, 4, 9, 0, 1, 7]
        assert batch["image_turn"][2].tolist() == [1] * 4 + [2] * 5
        is_image = batch["input_ids"] == processor.image_token_id
        assert torch.equal(is_image.sum(1), crops * processor.image_tokens)
        rows.images.add_images(batch, [rows[i][1] for i in range(len(rows))])
        with torch.no_grad():
            losses.append(model(**batch).loss)
    torch.testing.assert_close(*losses, atol=2e-3, rtol=2e-3)


def test_mean_tokens_of_what_is_asked(parts, cache, data):
    model, processor = parts
    asked = llava.split_questions(llava.load_samples(data))
    for source in (cache, None):
        images = SampleImages(processor, source)
        told = evaluate.count_costs(model, images, asked)
        shown = [1, 4, 4, 4, 5, 1, 3, 3, 4]  # images of earlier turns are shown again
        assert told["visual_tokens"] == round(16 * sum(shown) / len(shown), 1)
        order = [i for batch in evaluate.batch_by_length(asked, images, 3) for i in batch]
        crops = [sum(images.crops(asked[i])) for i in order]
        assert crops == sorted(crops) and sorted(order) == list(range(len(asked)))
        together = evaluate.generate_answers(model, evaluate.encode_questions(images, asked), 3)
        for question, tokens in zip(asked, together):
            alone = evaluate.generate_answers(model, evaluate.encode_questions(images, [question]), 3)[0]
            assert torch.equal(alone, tokens[: len(alone)])


def test_a_blind_cell_and_a_broken_picture(parts, tmp_path):
    _, processor = parts
    (tmp_path / "a.png").write_bytes(b"no picture")
    sample = llava.Sample("7", (tmp_path / "a.png",), (Turn(f"{IMAGE}What?", "a fox"),))
    with pytest.raises(UsageError, match=r"sample 7: .*a.png is truncated or no image"):
        ConversationDataset([sample], SampleImages(processor)).encode(0)
    blind = FlashSlothProcessor(processor.image_processor, processor.tokenizer, 0, 2, layout="anyres")
    # its images are not even looked at
    encoded, pixels = ConversationDataset([sample], SampleImages(blind))[0]
    assert not len(pixels) and processor.image_token_id not in encoded.ids


def test_keys(data):
    def keys(*overrides: str) -> dict[str, str]:
        return collect_keys(cell(data, *overrides))

    def collect_keys(config: Config) -> dict[str, str]:
        stages = plan_stages(config).collect_stages().values()
        return {f"{s.kind} {s.roles}": s.key for s in stages}

    plain, square = keys(), keys("image.tiles=2")
    anyres_config = cell(data, "image.tiles=2", "image.layout=anyres")
    assert collect_keys(without_tiles(anyres_config)) == plain  # without tiles there is nothing to lay out
    assert keys("image.tiles=2", "image.layout=square") == square
    anyres = collect_keys(anyres_config)
    assert {kind for kind in square if anyres[kind] != square[kind]} == {
        "features ('train',)",
        "features ('test',)",
        "finetune ()",
        "evaluate ()",
    }


def test_the_whole_way(data, tmp_path):
    """A cell from JSON to metrics; its model folder knows its layout."""
    from experiments.sweep import __main__ as sweep

    roles = [f"data.{role}=[{data}]" for role in ("pretrain", "train", "test")]
    limits = [
        "pretrain.max_steps=1",
        "finetune.max_steps=2",
        "pretrain.batch_size=4",
        "finetune.batch_size=4",
        "blind=false",
        "trainer.accelerator=cpu",
        "trainer.logger=none",
    ]
    assert (
        sweep.main(
            [
                f"out={tmp_path}",
                "compressor=sap+embq",
                "image.tiles=2",
                "image.layout=anyres",
                *roles,
                *limits,
            ]
        )
        == 0
    )
    (metrics,) = tmp_path.glob("cells/*/metrics.json")
    assert json.loads(metrics.read_text())["efficiency"]["visual_tokens"] == round(16 * 29 / 9, 1)
    (folder,) = tmp_path.glob("finetune/*/model")
    assert json.loads((folder / "processor_config.json").read_text())["layout"] == "anyres"


def test_a_disk_too_small_for_the_features_is_known_before_any_is_computed(config, tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(features, "allocate_file", refuse)
    monkeypatch.setattr(features, "encode_crops", lambda *_: pytest.fail("computed"))
    with pytest.raises(OSError, match=r"No space left on device: .*features.npy"):
        cached(config, tmp_path / "features/key")
