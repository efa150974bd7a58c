"""Models by their repository of the Hugging Face hub: chat, lmms-eval's loading, released checkpoints."""

import json
import os
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from factories import make_model, make_processor, picture
from reuse_families import attached
from safetensors.torch import load_file

from compressors.errors import UnreachableError, UsageError
from connectors import hub
from experiments import chat
from llm_adapters import saved
from llm_adapters.released.__main__ import main as convert

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GOLDEN = Path(__file__).parents[1] / "golden" / "flashsloth"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, which is out of reach."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def cache_files(cache: Path, name: str, files: Path) -> Path:
    """The files as a repository's in the cache: links to blobs, of two revisions. The snapshot's folder."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (snapshot, root / "blobs", root / "refs"):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted(files.iterdir())):
        blob = root / "blobs" / str(number)
        path.rename(blob)
        os.symlink(Path("../../blobs", str(number)), snapshot / path.name)
    for revision in ("main", "v1"):
        (root / "refs" / revision).write_text(COMMIT)
    return snapshot


@pytest.fixture
def repository(cache, tmp_path):
    """A composed model's repository, `someone/sloth`."""
    model = make_model()
    for part in (model, make_processor(model)):
        part.save_pretrained(tmp_path / "saved")
    cache_files(cache, "someone/sloth", tmp_path / "saved")
    return model


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
@pytest.mark.usefixtures("repository")
def test_chat_with_a_repository(tmp_path, revision, capsys):
    picture().save(tmp_path / "cat.png")
    arguments = [str(tmp_path / "cat.png"), "What is this?", "model=someone/sloth", "max_new_tokens=4"]
    if revision is not None:
        arguments.append(f"revision={revision}")
    assert chat.main(arguments) == 0
    assert "someone/sloth: sap + embq, 4 visual tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (
            ["model=someone/sloth", "revision=v2"],
            "someone/sloth: no such folder, and not to be had from the hub",
        ),
        (["model=someone/else"], "someone/else: no such folder, and not to be had from the hub"),
        (["model={}", "revision=v1"], "revision=v1: {} is a folder, which has no revisions"),
        (["revision=v1"], "revision=v1: of which model? name one with model=OWNER/NAME"),
    ],
)
@pytest.mark.usefixtures("repository")
def test_what_chat_refuses(tmp_path, arguments, wrong, capsys):
    picture().save(tmp_path / "cat.png")
    words = [word.replace("{}", str(tmp_path)) for word in arguments]
    assert chat.main([str(tmp_path / "cat.png"), "What is this?", *words]) == 2
    err = capsys.readouterr().err
    assert wrong.replace("{}", str(tmp_path)) in err and err.count("\n") == 1


def test_what_the_harness_loads(cache, tmp_path):
    """`pretrained=OWNER/NAME,revision=v1` of lmms-eval is this function's."""
    model, processor = attached("llava")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "saved")
    cache_files(cache, "someone/llava-sap", tmp_path / "saved")
    cpu = torch.device("cpu")
    loaded, again = saved.load_saved_model("someone/llava-sap", cpu, attached=True, revision="v1")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert hasattr(again, "attached")
    with pytest.raises(
        UsageError, match="another MLLM with a compressor in it; load it with llm_adapters.reuse.l"
    ):
        saved.load_saved_model("someone/llava-sap", cpu)
    with pytest.raises(UnreachableError, match="someone/llava-sap: no such folder"):
        saved.load_saved_model("someone/llava-sap", cpu, attached=True, revision="v2")


def test_a_released_checkpoint_there_and_back(cache, tmp_path, capsys):
    released = tmp_path / "released"
    released.mkdir()
    weights = load_file(GOLDEN / "weights.safetensors")
    torch.save(weights, released / "pytorch_model.bin")  # as releases have it
    (released / "config.json").write_text((GOLDEN / "config.json").read_text())
    cache_files(cache, "someone/released", released)
    arguments = ["convert", "someone/released", str(tmp_path / "ours"), "revision=v1"]
    assert convert(arguments) == 0
    ours = cache_files(cache, "someone/ours", tmp_path / "ours")
    assert json.loads((ours / "config.json").read_text())["model_type"] == "slothkit"
    assert convert(["export", "someone/ours", str(tmp_path / "back"), "revision=main"]) == 0
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    part = {name: value for name, value in weights.items() if name.startswith("model.mm_projector.")}
    (tmp_path / "stage").mkdir()
    torch.save(part, tmp_path / "stage" / "mm_projector.bin")
    arguments = ["convert", str(tmp_path / "stage"), str(tmp_path / "whole"), "base=someone/ours"]
    assert convert([*arguments, "base_revision=v1"]) == 0
    assert (
        load_file(tmp_path / "whole" / "model.safetensors").keys()
        == load_file(ours / "model.safetensors").keys()
    )
    capsys.readouterr()
    for wrong, words in (
        (["convert", "someone/else", str(tmp_path / "x")], "someone/else: no such folder, and not to be had"),
        (
            [*arguments[:2], str(tmp_path / "x"), "base=someone/ours", "base_revision=v2"],
            "someone/ours: no such",
        ),
        ([*arguments[:2], str(tmp_path / "x"), "base_revision=v2"], "base_revision=v2: of which repository?"),
        (
            ["export", "someone/ours", str(tmp_path / "x"), "tiles=2"],
            "export: takes no settings but revision=",
        ),
    ):
        assert convert(wrong) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
        assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("cache")
def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("someone/sloth").mkdir(parents=True)
    assert hub.find_folder("someone/sloth") == Path("someone/sloth")
    assert not hub.is_hub_id("a/b/c") and not hub.is_hub_id("./sloth") and hub.is_hub_id("sloth")
