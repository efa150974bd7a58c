"""The gallery: what its pictures show is what the compressors do, and the one in the repository is whole."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import compressors
from compressors.listing import collect_facts
from experiments import gallery
from experiments.config import signatures
from experiments.inspection.origins_figure import draw_origins, make_palette, paint_all_tokens
from experiments.inspection.token_origins import estimate_origins

BUILT_IN = signatures.compressors().list_built_in()
FOLDER = Path(compressors.__file__).parent / "gallery"
# tokens are sums of patches with weights that are not negative
SUMS = ["adaptive_avg_pool", "avg_pool", "divprune", "interpolate", "random", "tome", "uniform"]


def make(name: str, **knobs) -> compressors.Compressor:
    return compressors.create(name, dim=8, llm_dim=12, **knobs).eval()


@pytest.mark.parametrize("name", SUMS)
def test_weights_of_sums_are_found(name):
    part, features = make(name), torch.randn(1, 6, 9, 8)
    found = estimate_origins(part, features)
    assert found.shape == (6, 6, 9)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(6))
    torch.testing.assert_close(found.mean(0), part.attention(features)[0])
    tokens = torch.einsum("nhw,hwc->nc", found, features[0])
    torch.testing.assert_close(tokens, part(features)[0])


@pytest.mark.parametrize("name", ["sap", "patch_merger", "token_packer", "window_attention_pool"])
def test_learned_windows_stay_in_their_windows(name):
    """Each token has its window alone, and something of all its patches."""
    found = estimate_origins(
        make(name, **({"heads": 4} if "heads" in compressors.knobs(name) else {})), torch.randn(1, 6, 9, 8)
    )
    windows = estimate_origins(make("avg_pool"), torch.randn(1, 6, 9, 8)) > 0
    assert ((found > 0) == windows).all()


def test_a_global_query_reads_everywhere_and_a_question_is_taken_along():
    part = make("qformer", num_queries=3, num_layers=2, heads=2, width=8, text=True)
    features, text = torch.randn(1, 6, 9, 8), torch.randn(1, 5, 12)
    found = estimate_origins(part, features, text)
    assert (found > 0).all()
    assert not found.equal(estimate_origins(part, features, text + 1))


def test_colours_mix_where_tokens_share_a_patch():
    found = torch.tensor([[[1.0, 0, 0, 0]], [[0, 0.5, 0.5, 0]], [[0, 0.5, 0.25, 0]]])
    colours = make_palette(3)
    layer = torch.from_numpy(paint_all_tokens(found, colours))
    torch.testing.assert_close(layer[0, 0, :3], colours[0])
    torch.testing.assert_close(layer[0, 1, :3], (colours[1] + colours[2]) / 2)
    torch.testing.assert_close(layer[0, 2, :3], (2 * colours[1] + colours[2]) / 3)
    assert layer[0, :3, 3].unique().numel() == 1 and layer[0, 3, 3] == 0  # nobody reads the last


def test_a_sheet_says_what_the_compressor_says_of_itself():
    picture, found = Image.new("RGB", (60, 40)), torch.rand(40, 4, 6)
    for weights, title in (
        (None, "tells no weights of its own"),
        (torch.rand(4, 6), "its own weights"),
        (torch.ones(4, 6), "its own weights, all alike"),
    ):
        panels = [axes.get_title() for axes in draw_origins(picture, found, weights).axes]
        assert panels == ["all 40 tokens", "token 7", "token 21", "token 34", title]


def test_command(tmp_path, capsys):
    names = ["tome", "downsample", "sap"]
    assert gallery.main([*names, f"to={tmp_path / 'new'}"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "new" / f"{name}.png") for name in names]
    page = (tmp_path / "new" / "README.md").read_text()
    assert re.findall("^## (.*)$", page, re.M) == sorted(names)
    assert page.count("*Random weights.*") == 1
    for name in names:  # the one in the repository is what the code draws
        drawn, kept = (
            Image.open(folder / f"{name}.png").convert("RGB").resize((90, 20))
            for folder in (tmp_path / "new", FOLDER)
        )
        difference = [abs(a - b) for a, b in zip(drawn.tobytes(), kept.tobytes())]
        assert sum(difference) / len(difference) < 2
    assert gallery.main(["tom"]) == 2
    assert "unknown compressor 'tom'; did you mean 'tome'?" in capsys.readouterr().err


def test_the_page_in_the_repository_has_what_compressors_say_today():
    page = (FOLDER / "README.md").read_text()
    for name in BUILT_IN:
        assert gallery.format_gallery_section(collect_facts(name)) in page, name


def test_pictures_drawn_earlier_stay_on_the_page(tmp_path):
    for name in ("avg_pool", "uniform"):
        assert gallery.main([name, f"to={tmp_path}"]) == 0
    page = (tmp_path / "README.md").read_text()
    assert re.findall("^## (.*)$", page, re.M) == ["avg_pool", "uniform"]


def test_one_that_is_broken_is_left_out_with_its_reason(tmp_path, monkeypatch, capsys, broken_outside_part):
    """Whether it is drawn with all others or was drawn before, when it worked."""
    registry = signatures.compressors()
    monkeypatch.setattr(registry, "names", lambda: ["avg_pool", broken_outside_part])
    reason = f"compressor '{broken_outside_part}' of entry point no_such:Part does not load: "
    assert gallery.main([f"to={tmp_path}"]) == 0
    drawn, left_out = capsys.readouterr().out.splitlines()
    assert drawn == str(tmp_path / "avg_pool.png") and left_out.startswith(f"left out: {reason}")
    (tmp_path / f"{broken_outside_part}.png").touch()
    assert gallery.main(["avg_pool", f"to={tmp_path}"]) == 0
    assert f"left out: {reason}" in capsys.readouterr().out
    assert re.findall("^## (.*)$", (tmp_path / "README.md").read_text(), re.M) == ["avg_pool"]
    assert gallery.main([broken_outside_part, f"to={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {reason}")


def test_the_old_flag_is_refused_with_the_new_spelling(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gallery.main(["tome", "--to", "new"]) == 2
    assert "--to: settings are spelled KEY=VALUE; write to=new" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_gallery_in_the_repository_is_whole_and_small():
    page = (FOLDER / "README.md").read_text()
    assert re.findall("^## (.*)$", page, re.M) == BUILT_IN
    files = list(FOLDER.glob("*.png"))
    assert {path.name for path in files} == set(re.findall(r"\]\((.*?\.png)\)", page))
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) < 60e3 and sum(sizes) < 1e6
