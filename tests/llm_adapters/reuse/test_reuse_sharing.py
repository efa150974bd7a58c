"""Folders of models with a compressor attached: what they say, who loads them, from where."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from reuse_families import (
    EMBQ,
    SAP,
    assert_same,
    attached,
    family_params,
    inputs,
    make_model,
    make_processor,
    two_rows,
)

from compressors.errors import UnreachableError, UsageError
from connectors.versions import is_at_least
from llm_adapters import reuse
from llm_adapters.reuse.saving import INSTALL
from llm_adapters.saved import find_model_folder

SHARED = ("llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "mistral3")
over_shared_families = pytest.mark.parametrize("family", family_params(*SHARED))
REPOSITORY = "someone/llava-sap"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# prints, for each class, the error that keeps it from loading; without llm_adapters
TRY_TO_LOAD = """
import sys, transformers
assert "llm_adapters" not in sys.modules
for folder, own in zip(sys.argv[1::2], sys.argv[2::2]):
    for name in ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", own):
        try:
            getattr(transformers, name).from_pretrained(folder)
        except Exception as error:
            print(folder, name, "refused", " ".join(str(error).split()))
        else:
            print(folder, name, "loaded")
"""


def save(folder, family="llava"):
    model, processor = attached(family)
    save_both(model, processor, folder)
    return model, processor


def save_both(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.mark.slow
def test_a_folder_is_no_plain_model_in_a_fresh_process(tmp_path):
    """Each refusal says what to install and what to call."""
    command = [sys.executable, "-c", TRY_TO_LOAD]
    families = [family for family in SHARED if is_at_least(reuse.FAMILIES[family].since)]
    for family in families:
        model, _ = save(tmp_path / family, family)
        command += [str(tmp_path / family), type(model).__name__]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 4 * len(families)
    for line in lines:
        assert " refused " in line and INSTALL in line and "reuse.load" in line, line


@over_shared_families
def test_no_file_names_a_path_of_this_machine(family, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    save(first, family)
    model, processor = reuse.load(first)
    model.save_pretrained(second)
    processor.save_pretrained(second)
    for path in second.iterdir():
        assert os.fsencode(tmp_path) not in path.read_bytes(), path.name
    again, same = reuse.load(second)
    batch = inputs(same, two_rows(family, marked=True))
    with torch.no_grad():
        assert_same(family, again(**batch).logits, model(**batch).logits)


def test_the_card_tells_what_it_is_and_how_it_is_loaded(tmp_path):
    model, _ = attached("llava")
    model.name_or_path = "llava-hf/llava-1.5-7b-hf"
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nbase_model: llava-hf/llava-1.5-7b-hf\n")
    for words in ("| compressor | `sap` |", "`rate=3`", "| query module | `embq` |", "`num_queries=3`"):
        assert words in card
    assert INSTALL in card and "pip install" not in card and "model, processor = reuse.load(" in card


def test_what_a_caller_changes_later_is_not_what_was_attached(tmp_path):
    model, processor = make_model("llava"), make_processor("llava")
    knobs = {"at": [2], "dim": 8, "num_queries": 3}
    reuse.attach(model, processor, **SAP, query_module="embq", query_knobs=knobs)
    knobs["num_queries"] = 5
    knobs["at"].append(3)
    save_both(model, processor, tmp_path)
    loaded, again = reuse.load(tmp_path)
    batch = inputs(again, two_rows("llava", marked=True))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_two_models_of_one_configuration_are_refused():
    """What is attached is noted there: one's note would be taken for the other's."""
    plain = make_model("llava")
    models = [type(plain)(plain.config) for _ in range(2)]
    first, second = make_processor("llava"), make_processor("llava")
    reuse.attach(models[0], first, **SAP)
    with pytest.raises(UsageError, match="names a sap that is not in this model; .* copied before `attach`"):
        reuse.attach(models[1], second, "avg_pool", rate=2)
    assert models[0].config.slothkit["compressor"] == "sap"
    reuse.detach(models[0], first)
    reuse.attach(models[1], second, "avg_pool", rate=2)


def test_weights_of_other_parts_than_the_record_names_are_refused_in_one_line(tmp_path):
    save(tmp_path)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    values["slothkit"]["query_knobs"]["num_queries"] = 5
    config.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=f"{tmp_path}: its weights are not those .* size mismatch") as caught:
        reuse.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_base_of_a_relative_folder_is_no_repository(tmp_path, monkeypatch):
    """Whatever the working directory is when it is saved."""
    make_model("llava").save_pretrained(tmp_path / "base")
    processor = make_processor("llava")
    monkeypatch.chdir(tmp_path)
    model = transformers.AutoModelForImageTextToText.from_pretrained("base")
    reuse.attach(model, processor, **SAP)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.save_pretrained("saved")
    card = (tmp_path / "elsewhere" / "saved" / "README.md").read_text()
    assert "base_model" not in card and "| base model | of type `llava` |" in card


def test_saved_and_detached_it_is_the_plain_model(tmp_path):
    model, processor = attached("llava")
    reuse.detach(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava"
    assert not (tmp_path / "README.md").exists() and not (tmp_path / "slothkit.json").exists()
    assert transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize("own", [["<query>"], ["<question>", "<query>"]], ids=str)
def test_markers_that_the_tokenizer_had_before_stay(own, tmp_path):
    model, processor = make_model("llava"), make_processor("llava")
    processor.tokenizer.add_tokens(own, special_tokens=True)
    before = processor.tokenizer.get_vocab()
    reuse.attach(model, processor, **SAP, **EMBQ)
    save_both(model, processor, tmp_path)
    loaded, again = reuse.load(tmp_path)
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    reuse.detach(loaded, again)
    assert again.tokenizer.get_vocab() == before


def test_tokens_that_were_added_behind_the_markers_keep_their_ids(tmp_path):
    model, processor = attached("llava")
    processor.tokenizer.add_tokens(["<mine>"])
    save_both(model, processor, tmp_path)
    loaded, again = reuse.load(tmp_path)
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    reuse.detach(loaded, again)
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_a_folder_of_before_is_loaded(tmp_path):
    """With the record beside the plain configuration, as folders had it."""
    model, processor = save(tmp_path)
    config = tmp_path / "config.json"
    record = json.loads(config.read_text())["slothkit"]
    plain = record.pop("config")
    del record["new_markers"]
    config.write_text(json.dumps({**plain, "slothkit": record}))
    loaded, again = reuse.load(tmp_path)
    batch = inputs(again, two_rows("llava", marked=True))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_other_commands_find_the_folder(tmp_path):
    save(tmp_path)
    assert find_model_folder(tmp_path, attached=True) == tmp_path
    with pytest.raises(
        UsageError, match="another MLLM with a compressor in it; load it with llm_adapters.reuse.l"
    ):
        find_model_folder(tmp_path)


def cache_repository(cache, name=REPOSITORY, commit=COMMIT):
    """A repository in a cache of the hub, as a download leaves it, with two revisions."""
    root = cache / f"models--{name.replace('/', '--')}"
    model, processor = save(root / "snapshots" / commit)
    (root / "refs").mkdir()
    for revision in ("main", "v1"):
        (root / "refs" / revision).write_text(commit)
    return model, processor


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_repository_in_the_cache_is_loaded_offline(tmp_path, revision):
    model, processor = cache_repository(tmp_path)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    loaded, again = reuse.load(REPOSITORY, revision=revision, **options)
    batch = inputs(processor, two_rows("llava", marked=True))
    after = inputs(again, two_rows("llava", marked=True))
    assert all(torch.equal(batch[name], after[name]) for name in batch)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_what_is_not_there_is_refused_in_one_line(tmp_path):
    cache_repository(tmp_path)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    for name, revision in (("someone/else", None), (REPOSITORY, "v2")):
        with pytest.raises(UnreachableError, match=f"{name}: .*cached") as caught:
            reuse.load(name, revision=revision, **options)
        assert "\n" not in str(caught.value)
    for name in (str(tmp_path / "nothere"), "./nothere", "runs/cells/nothere"):
        with pytest.raises(UsageError, match=f"^{name}: no such folder; give that of a saved model"):
            reuse.load(name)
    save(tmp_path / "folder")
    with pytest.raises(UsageError, match="revision=v1: .* is a folder, which has no revisions"):
        reuse.load(tmp_path / "folder", revision="v1")


def test_an_upload_as_it_is_saved_is_refused(tmp_path):
    model, processor = attached("llava")
    with pytest.raises(UsageError, match=r"use model\.push_to_hub"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(UsageError, match=r"use processor\.push_to_hub"):
        processor.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(UsageError, match=r"use processor\.push_to_hub"):
        processor.save_pretrained(tmp_path, True)
    with pytest.raises(UsageError, match=r"use model\.push_to_hub"):
        model.save_pretrained(tmp_path, True, None, True)
    assert not list(tmp_path.iterdir())
