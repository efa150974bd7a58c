"""Overrides, presets, precedence, suggestions."""

import re
import subprocess
import sys

import pytest
from fakes import cells, config
from omegaconf import OmegaConf

from compressors.errors import UsageError
from compressors.key_value import parse_settings, split_at_commas
from compressors.setting_fields import collect_settings
from experiments import completion
from experiments.config import signatures
from experiments.config.cells import make_blind_cells, make_cells
from experiments.config.presets import list_presets, load_preset
from experiments.config.schema import Config
from experiments.config.sources import resolve_source
from experiments.store.plan import plan_stages
from experiments.sweep import help


def test_commas_split_only_at_top_level():
    assert split_at_commas("[2,4],3") == ["[2,4]", "3"]
    assert split_at_commas("'a,b',{x: 1, y: [2]}") == ["'a,b'", "{x: 1, y: [2]}"]
    assert split_at_commas("") == [""]


@pytest.mark.parametrize("argument", ["seed=[1,2", "seed='1", "seed", "=3"])
def test_malformed_override(argument):
    with pytest.raises(UsageError, match="seed|key=value"):
        parse_settings([argument])


def test_a_key_given_twice():
    with pytest.raises(UsageError, match="seed=0,1"):
        parse_settings(["seed=0", "seed=1"])


def test_product():
    found = cells("compressor=avg_pool,sap+embq", "seed=0,1,2", "embq.at=[2,4],3")
    assert len(found) == 12
    assert {c.config.compressor for c in found} == {"avg_pool", "sap+embq"}
    assert {c.config.parts["embq"]["at"] for c in found if c.config.query_module} == {(2, 4), 3}
    assert {c.label for c in found} == {"avg_pool", "sap+embq embq.at=[2,4]", "sap+embq embq.at=3"}


def test_a_row_is_a_cell_at_all_its_seeds():
    found = cells("compressor=avg_pool,sap+embq", "seed=0,1", "embq.at=2,3")
    assert len({c.row for c in found}) == 3


def test_precedence(tmp_path):
    assert Config().finetune.batch_size == 32
    mine = tmp_path / "mine.yaml"
    mine.write_text("preset: flashsloth\nfinetune: {lr: 5e-5}\nembq: {dim: 96}\n")
    found = make_cells(parse_settings([f"preset={mine}", "embq.num_queries=4"]))[0].config
    assert found.finetune.lr == 5e-5  # the file's
    assert found.finetune.batch_size == 128  # that of the preset it starts from
    assert found.evaluate.limit is None  # the default
    assert found.knobs("embq") == {"at": 8, "dim": 96, "num_queries": 4}
    over = make_cells(parse_settings([f"preset={mine}", "finetune.lr=1", "embq.dim=8"]))[0].config
    assert over.finetune.lr == 1.0 and over.knobs("embq")["dim"] == 8
    assert load_preset("flashsloth")[0].finetune.lr == 2e-5  # and nothing has leaked back


@pytest.mark.parametrize(("devices", "spelled"), [("[0, 1]", "[0,1]"), ("[3]", "[3]"), ("2", "2")])
def test_devices_of_a_preset_are_spelled_as_its_help_has_them(tmp_path, devices, spelled):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"preset: tiny\ntrainer: {{devices: {devices}}}\n")
    assert config(f"preset={mine}").trainer.devices == spelled


def test_a_compressor_may_want_another_recipe(tmp_path):
    rates = [config(f"compressor={name}").pretrain.lr for name in ("sap", "qformer+embq", "token_packer")]
    assert rates == [3e-3, 1e-3, 1e-3]
    assert config("compressor=qformer", "pretrain.lr=3e-3").pretrain.lr == 3e-3
    plain, told = (plan_stages(config("compressor=qformer", *more)) for more in ((), ("pretrain.lr=1e-3",)))
    assert plain.key == told.key
    mine = tmp_path / "mine.yaml"
    mine.write_text("preset: tiny\nwants: {sap: {finetune.epochs: 3}, qformer: {pretrain: {lr: 0.5}}}\n")
    assert config(f"preset={mine}", "compressor=sap+embq").finetune.epochs == 3
    assert config(f"preset={mine}", "compressor=qformer").pretrain.lr == 0.5
    assert config(f"preset={mine}", "compressor=resampler").pretrain.lr == 1e-3  # of tiny
    assert config("compressor=sap").finetune.epochs == 2  # and nothing has leaked back


@pytest.mark.parametrize(
    ("wants", "message"),
    [
        ("3", "wants: expected COMPRESSOR"),
        ("{sap: 3}", "wants: expected COMPRESSOR"),
        ("{sapp: {pretrain.lr: 1}}", "unknown compressor 'sapp'; did you mean 'sap'"),
        ("{sap: {pretrain.lrr: 1}}", "did you mean 'pretrain.lr'"),
        ("{sap: {pretrain.lr: -1}}", "pretrain.lr=-1.0: must be more than 0"),
        ("{sap: {sap.rate: 2}}", "wants.sap: 'sap.rate' cannot be here"),
        ("{sap: {seed: 2}}", "wants.sap: 'seed' cannot be here"),
    ],
)
def test_bad_wants(wants, message, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"wants: {wants}\n")
    with pytest.raises(UsageError, match=f"^{re.escape(str(mine))}: .*{re.escape(message)}"):
        config(f"preset={mine}")


@pytest.mark.parametrize("name", list_presets())
def test_every_preset(name):
    found = make_cells(parse_settings([f"preset={name}"]))[0].config
    assert found.preset == name
    assert OmegaConf.to_container(OmegaConf.structured(found))["seed"] == 0  # a plain structured config


def test_paper_recipe():
    found = make_cells(parse_settings(["preset=flashsloth"]))[0].config
    assert (found.pretrain.lr, found.finetune.lr) == (1e-3, 2e-5)
    assert (found.pretrain.batch_size, found.finetune.batch_size) == (256, 128)
    assert found.knobs("embq") == {"at": 8, "dim": 576, "num_queries": 9}
    assert found.knobs("sap") == {"rate": 3}
    hd = make_cells(parse_settings(["preset=flashsloth_hd"]))[0].config
    assert hd.tower.train and hd.tiles("train") == hd.tiles("test") == 2 and hd.tiles("pretrain") == 1


def test_values():
    assert config("finetune.max_steps=1e3").finetune.max_steps == 1000
    with pytest.raises(UsageError, match="finetune.lr=inf: must be a finite number"):
        config("finetune.lr=1e400")
    assert config("finetune.lr=1").finetune.lr == 1.0
    assert config("prompt.user=USER:").prompt.user == "USER:"
    assert config("prompt.system='Hello, you'").prompt.system == "Hello, you"
    assert config("data.train=a.json").data.train == ["a.json"]
    assert config("data.train=[a.json,b.json]").data.train == ["a.json", "b.json"]
    assert config("data.dataset=null").data.dataset is None
    assert config("trainer.devices=2").trainer.devices == "2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compressor=sapp", "unknown compressor 'sapp'; did you mean 'sap'"),
        ("compressor=sap+emb", "unknown query module 'emb'; did you mean 'embq'"),
        ("compressor=sap+embq+embq", "NAME\\+QUERY_MODULE"),
        ("compressor=none+embq", "sees no image"),
        ("projector=mlp", "unknown projector 'mlp'"),
        ("preset=tyny", "unknown preset 'tyny'; did you mean 'tiny'"),
        ("preset=missing.yaml", "^preset=missing.yaml: no such file"),
        ("finetun.lr=1", "did you mean 'finetune'"),
        ("finetune.lrr=1", "did you mean 'finetune.lr'"),
        ("lr=1", "did you mean pretrain.lr or finetune.lr"),
        ("sedd=1", "did you mean 'seed'"),
        ("SEED=1", "unknown setting 'SEED'; did you mean 'seed'"),
        ("finetune.LR=1", "unknown setting 'finetune.LR'; did you mean 'finetune.lr'"),
        ("compressor=SAP", "unknown compressor 'SAP'; did you mean 'sap'"),
        ("rate=3", "unknown setting 'rate'; did you mean 'sap.rate'.$"),
        ("num_queries=3", "unknown setting 'num_queries'; did you mean 'embq.num_queries'.$"),
        ("identity.x=3", "compressor 'identity' has no knob 'x'; there is none"),
        ("finetune=1", "'finetune' is a section"),
        ("sap=3", "sap.KNOB"),
        ("sap.rte=3", "no knob 'rte'; did you mean 'rate'"),
        ("sap.rate=big", "sap.rate='big': expected int"),
        ("embq.fusion=ad", "embq.fusion='ad'"),
        ("random.rate=3", "no cell uses 'random'"),
        ("seed=one", "seed='one': expected int"),
        ("seed=", "seed='': expected int"),
        ("seed=-1", "seed=-1: must be at least 0"),
        ("seed=1.5", "seed=1.5: expected int"),
        ("finetune.lr=0", "finetune.lr=0.0: must be more than 0"),
        ("finetune.accumulate=3", "does not divide"),
        ("trainer.precision=fp4", "must be one of auto"),
        ("tower.train=3", "expected bool"),
        ("data.scale=.nan", "data.scale=nan"),
        ("finetune.query_warmup=1", "finetune.query_warmup=1.0: must be less than 1"),
        ("finetune.query_warmup=-0.1", "finetune.query_warmup=-0.1: must be at least 0"),
        ("finetune.query_warmup=.nan", "finetune.query_warmup=nan: must be at least 0"),
        ("finetune.query_warmup=all", "finetune.query_warmup='all': expected float"),
        ("finetune.query_warmup_form=linear", "must be one of step, fade, thin"),
        ("pretrain.query_warmup=0.1", "unknown setting 'pretrain.query_warmup'; did you mean finetune.query"),
        ("evaluate.every=5", "unknown setting 'evaluate.every'; did you mean validate.every?"),
    ],
)
def test_errors_name_the_value_and_what_to_do(override, message):
    with pytest.raises(UsageError, match=message) as caught:
        cells(override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (("compressor=tome,sap", "rate=3"), "did you mean 'tome.rate'?"),
        (("compressor=sap", "prune=fastv", "layer=1"), "did you mean 'fastv.layer'?"),
        # no part of the line has it, others do
        (("compressor=sap", "fusion=add"), "did you mean 'embq.fusion'?"),
        (("compressor=identity", "rate=3"), "did you mean PART.rate, such as 'adaptive_avg_pool.rate'?"),
    ],
)
def test_a_knob_without_its_part_is_answered_with_it(overrides, hint):
    with pytest.raises(UsageError) as caught:
        cells(*overrides)
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize("compressor", ["sap", "none"])
@pytest.mark.parametrize("override", ["finetune.query_warmup=0.1", "evaluate.blank_queries=true"])
def test_what_acts_on_a_query_module_needs_one(tmp_path, compressor, override):
    words = f"compressor={compressor} has no query module; add one, as in compressor=sap\\+embq, or leave"
    with pytest.raises(UsageError, match=f"^{override}: {words}") as caught:
        cells(f"compressor=sap+embq,{compressor}", override)
    assert "\n" not in str(caught.value)
    path, _, value = override.partition("=")
    (tmp_path / "mine.yaml").write_text(f"{path}: {value}")
    preset = f"preset={tmp_path / 'mine.yaml'}"
    with pytest.raises(UsageError, match=f"^{preset}: {override}: {words}"):
        cells(preset, f"compressor={compressor}")
    assert cells(preset, f"compressor={compressor}", f"{path}={'false' if value == 'true' else 0}")
    (cell,) = cells(preset, "compressor=sap+embq")
    assert cell.config.finetune.query_warmup or cell.config.evaluate.blank_queries


def test_blind_cells_beside_a_query_warmup_are_those_without():
    usual = make_blind_cells(cells("compressor=sap+embq"))
    for override in ("finetune.query_warmup=0,0.1", "evaluate.blank_queries=false,true"):
        seeing = cells("compressor=sap+embq", override)
        assert len(seeing) == 2
        assert [cell.config for cell in make_blind_cells(seeing)] == [usual[0].config]
        assert [cell.config for cell in make_blind_cells(seeing[1:])] == [usual[0].config]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune: {lrr: 1}", "mine.yaml: unknown setting 'finetune.lrr'"),
        ("embq: {dmi: 1}", "mine.yaml: .*no knob 'dmi'"),
        ("seed: one", "mine.yaml: seed='one'"),
        ("preset: [tiny]", "mine.yaml: preset=.*expected"),
        ("- 1", "mine.yaml: expected settings"),
        ("", "mine.yaml: the preset file is empty"),
        ("# seed: 1", "mine.yaml: the preset file is empty"),
        ("a: [1", "mine.yaml: not readable as YAML"),
        ("preset: tinny", "unknown preset 'tinny'"),
    ],
)
def test_bad_preset_files(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        cells(f"preset={tmp_path / 'mine.yaml'}")
    assert "\n" not in str(caught.value)


def test_presets_in_a_circle(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(f"preset: {two}")
    two.write_text(f"preset: {one}")
    with pytest.raises(UsageError, match="circle"):
        cells(f"preset={one}")


def test_a_knob_that_some_cell_uses_is_no_error():
    avg_pool, sap = cells("compressor=avg_pool,sap", "sap.rate=2")
    assert avg_pool.config.parts == {} and sap.config.parts == {"sap": {"rate": 2}}


def test_blind_cell():
    found = make_blind_cells(cells("compressor=sap,sap+embq", "seed=3,4"))
    assert [c.config.compressor for c in found] == ["none"]
    assert found[0].config.seed == 3 and found[0].config.blind and not found[0].config.parts
    assert len(make_blind_cells(cells("data.test=test,tune"))) == 2
    for settings in ("data.workers=0,1", "evaluate.cache=static,dynamic"):
        assert [cell.label for cell in make_blind_cells(cells(settings))] == ["blind"]


def test_a_cache_of_fixed_size_behind_a_pruner_is_refused():
    assert cells("prune=fastv", "evaluate.cache=auto")
    with pytest.raises(UsageError, match="evaluate.cache=static: prune=fastv drops tokens"):
        cells("prune=fastv", "evaluate.cache=static")


def test_unknown_asset():
    with pytest.raises(UsageError, match="asset:tiny/towr: no such asset"):
        resolve_source("asset:tiny/towr")
    assert resolve_source("google/siglip") == "google/siglip"


def test_help_names_every_setting_and_part():
    text = help.make_help_text()
    for name in (
        *collect_settings(Config),
        *signatures.compressors().names(),
        *signatures.pruners().names(),
        *list_presets(),
    ):
        assert name in text


def test_help_says_which_part_is_broken_and_lists_the_others(broken_outside_part):
    lines = help.make_help_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"  {broken_outside_part} ")]
    assert "unusable: compressor 'gone' of entry point no_such:Part does not load: " in line
    assert any(line.startswith("  sap ") and "rate=3" in line for line in lines)


def test_completion_has_no_knobs_of_a_broken_part_and_those_of_the_others(broken_outside_part):
    assert broken_outside_part in completion.list_part_names("compressor", "")
    for word in ("s", f"{broken_outside_part}.r"):
        keys = completion.list_override_keys(word)
        assert "seed=" in keys and not any(key.startswith(broken_outside_part) for key in keys)
    keys = completion.list_override_keys("s")
    assert "sap." in keys
    assert "sap.rate=" in completion.list_override_keys("sap.r")
    assert completion.list_knob_values(f"{broken_outside_part}.rate") == []


def test_configuration_and_plan_import_no_torch():
    code = (
        "import sys; from experiments.sweep import __main__, request; "
        "from compressors.key_value import parse_settings; "
        "request.read_request(parse_settings(['llm.source=a/b', 'tower.source=a/b'])); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
