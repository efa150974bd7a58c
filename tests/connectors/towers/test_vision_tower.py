"""Vision towers on tiny random models of the real classes: images of 30 pixels, patches of 7, a 4x4 grid."""

import copy

import open_clip
import pytest
import timm
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, SiglipVisionConfig

from compressors.errors import UsageError
from connectors.towers.base import VisionTower
from connectors.towers.build import build_tower
from connectors.towers.open_clip import OpenClipVisionConfig
from connectors.versions import find_vision_parts, switch_checkpointing

torch.set_num_threads(1)  # tiny models: threads only cost

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES = {**SIZES, "image_size": 30, "patch_size": 7}
TIMM = {"embed_dim": 32, "depth": 4, "num_heads": 4, "img_size": 30, "patch_size": 7}
NATIVE = {"width": 32, "layers": 4, "head_width": 8, "image_size": 30, "patch_size": 7}
HF = {
    "siglip": {"model_type": "siglip_vision_model", "intermediate_size": 48, **SIZES},
    "clip": {"model_type": "clip_vision_model", "intermediate_size": 48, **SIZES},
    "dinov2": {"model_type": "dinov2", **SIZES},
    "registers": {"model_type": "dinov2_with_registers", "num_register_tokens": 3, **SIZES},
}
OPEN_CLIP = {
    "native": {"model_name": "ViT-B-32-quickgelu", "vision_cfg": NATIVE},
    "timm_siglip": {"model_name": "ViT-B-16-SigLIP", "timm_kwargs": TIMM},
    "timm_clip": {"model_name": "MobileCLIP2-L-14", "timm_kwargs": TIMM},
    "timm_eva": {"model_name": "EVA02-B-16", "timm_kwargs": TIMM},
    "timm_pe": {"model_name": "PE-Core-T-16-384", "timm_kwargs": TIMM},
}
OPEN_CLIP = {k: {"model_type": "slothkit_open_clip_vision", **v} for k, v in OPEN_CLIP.items()}
CONFIGS = {**HF, **OPEN_CLIP}
every_family = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
hf_families = pytest.mark.parametrize("config", HF.values(), ids=HF)


def tower_of(config: dict, select_layer: int = -2) -> VisionTower:
    """With weights far enough from their initialisation that positions, CLS and layer scale all matter."""
    torch.manual_seed(0)
    tower = build_tower(config, select_layer).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return tower


def named(model_name: str) -> dict:
    return {"model_type": "slothkit_open_clip_vision", "model_name": model_name}


def pixels(height: int = 30, width: int = 30, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def give(source: nn.Module, target: nn.Module) -> None:
    """`target` takes its weights from the larger `source`."""
    state, target = find_vision_parts(source).state_dict(), find_vision_parts(target)
    target.load_state_dict({key: state[key] for key in target.state_dict()})


@every_family
def test_sizes_are_what_forward_gives(config):
    tower = tower_of(config)
    assert (tower.dim, tower.patch_size, tower.image_size) == (32, 7, 30)
    assert (tower.num_layers, tower.depth, len(tower.levels)) == (4, 3, 3)
    assert tower.grid() == (4, 4) and tower.grid(60) == (8, 8)
    assert tower(pixels()).shape == (2, *tower.grid(), tower.dim)


@every_family
@pytest.mark.parametrize("select_layer", [-1, -2, -4, 2])
def test_cut_tower_is_bit_equal_to_the_full_ones_hidden_state(config, select_layer):
    full, cut = tower_of(config, -1), build_tower(config, select_layer).eval()
    give(full, cut)
    assert cut.depth == (select_layer if select_layer > 0 else 5 + select_layer)
    assert torch.equal(cut(pixels()), full(pixels(), levels=[select_layer])[0])
    assert sum(p.numel() for p in cut.parameters()) <= sum(p.numel() for p in full.parameters())


@hf_families
@pytest.mark.parametrize("select_layer", [-1, -2])
def test_hidden_state_of_transformers_without_cls(config, select_layer):
    reference = AutoModel.from_config(AutoConfig.for_model(**config)).eval()
    tower = build_tower(config, select_layer).eval()
    give(reference, tower.backbone)
    options = {} if "dinov2" in config["model_type"] else {"interpolate_pos_encoding": True}
    for image in pixels(), pixels(49, 28):
        hidden = reference(image, output_hidden_states=True, **options).hidden_states[select_layer]
        prefix = {"siglip": 0, "clip": 1, "dinov2": 1, "dinov2_with_registers": 4}[
            config["model_type"].removesuffix("_vision_model")
        ]
        assert torch.equal(tower(image).flatten(1, 2), hidden[:, prefix:])


def test_open_clip_native_equals_its_own_hidden_state():
    vision, text = open_clip.CLIPVisionCfg(**NATIVE), open_clip.CLIPTextCfg(width=8, heads=1, layers=1)
    reference = open_clip.CLIP(32, vision, text, quick_gelu=True).visual.eval()
    tower = build_tower(CONFIGS["native"], -2).eval()
    give(reference, tower.backbone.vit)
    assert type(tower.backbone.vit.transformer.resblocks[0].mlp.gelu) is open_clip.transformer.QuickGELU
    expected = reference.forward_intermediates(pixels(), indices=[2], output_fmt="NLC")
    expected = expected["image_intermediates"][0]
    torch.testing.assert_close(tower(pixels()).flatten(1, 2), expected, rtol=0, atol=1e-6)


def test_open_clip_timm_equals_timm():
    reference = timm.create_model("vit_base_patch16_siglip_224", num_classes=0, **TIMM).eval()
    tower = build_tower(CONFIGS["timm_siglip"], -1).eval()
    give(reference, tower.backbone.vit)
    expected = reference.forward_intermediates(pixels(), indices=[3], output_fmt="NLC")[1][0]
    assert torch.equal(tower(pixels()).flatten(1, 2), expected)


def timm_to_transformers(state: dict) -> dict:
    """SigLIP weights under transformers' names; qkv is one matrix in timm and three there."""
    renames = [
        ("patch_embed.proj", "embeddings.patch_embedding"),
        ("blocks.", "encoder.layers."),
        ("norm1", "layer_norm1"),
        ("norm2", "layer_norm2"),
        ("attn.proj", "self_attn.out_proj"),
    ]
    found = {}
    for key, value in state.items():
        for old, new in renames:
            key = key.replace(old, new)
        if key == "pos_embed":
            found["embeddings.position_embedding.weight"] = value[0]
        elif "attn.qkv" in key:
            for name, part in zip("qkv", value.chunk(3)):
                found[key.replace("attn.qkv", f"self_attn.{name}_proj")] = part
        else:
            found[key] = value
    return found


@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("select_layer", [-1, -2])
def test_siglip_through_open_clip_equals_siglip_through_transformers(select_layer, act):
    theirs = tower_of({**CONFIGS["timm_siglip"], "hidden_act": act}, select_layer)
    ours = build_tower({**HF["siglip"], "intermediate_size": 128, "hidden_act": act}, select_layer).eval()
    ours.backbone.load_state_dict(timm_to_transformers(theirs.backbone.vit.state_dict()))
    torch.testing.assert_close(ours(pixels()), theirs(pixels()), rtol=0, atol=1e-5)
    for name in "image_mean", "image_std", "resample", "patch_size", "image_size", "dim":
        assert getattr(ours, name) == getattr(theirs, name)


def test_the_gelu_variant_is_seen():
    exact, tanh = (tower_of({**HF["siglip"], "hidden_act": act}) for act in ("gelu", "gelu_pytorch_tanh"))
    give(exact, tanh)
    assert 1e-6 < (exact(pixels()) - tanh(pixels())).abs().max() < 1e-1


@every_family
def test_rectangular_images_keep_rows_and_columns(config):
    tower = tower_of(config)
    image = pixels(49, 28)
    assert tower.grid(49, 28) == (7, 4)
    before = tower(image)
    assert before.shape == (2, 7, 4, 32)
    image[:, :, 14:21, 21:28] += 10  # patch (2, 3)
    change = (tower(image) - before).abs().sum(-1)[0]
    assert change.argmax() == 2 * 4 + 3


@every_family
def test_pixels_beyond_the_last_whole_patch_are_not_seen(config):
    image = pixels()
    other = image.clone()
    other[..., 28:, :] = other[..., 28:] = 7.0
    tower = tower_of(config)
    torch.testing.assert_close(tower(image), tower(other), rtol=0, atol=0)


@every_family
def test_levels(config):
    tower = tower_of(config)
    found = tower(pixels(), levels=[-2, 1, -4, -2])
    assert [level.shape for level in found] == [(2, 4, 4, 32)] * 4
    assert torch.equal(found[0], tower(pixels())) and torch.equal(found[0], found[3])
    assert torch.equal(found[1], found[2]) and not torch.equal(found[0], found[1])
    with pytest.raises(UsageError, match=r"level -1: .*select_layer=-2; choose -4..-2 or 1..3$"):
        tower(pixels(), levels=[-1])


@every_family
def test_unfrozen_every_parameter_gets_a_gradient_frozen_none(config):
    tower = tower_of(config)
    tower(pixels()).square().sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None or not p.grad.any()] == []
    tower.zero_grad(set_to_none=True)
    tower.freeze()
    assert tower.frozen and not tower(pixels()).requires_grad
    assert all(not level.requires_grad for level in tower(pixels(), levels=[1, 2]))
    tower.unfreeze()
    assert not tower.frozen and tower.training and tower(pixels()).requires_grad


def test_a_frozen_tower_stays_in_eval_mode():
    config = {**HF["siglip"], "attention_dropout": 0.5}
    parent = nn.Sequential(tower_of(config), nn.Linear(32, 8))
    parent.train()
    assert not torch.equal(parent(pixels()), parent(pixels()))
    parent[0].freeze()
    assert parent.train() is parent and parent.training and not any(m.training for m in parent[0].modules())
    assert torch.equal(parent(pixels()), parent(pixels()))
    assert parent(pixels()).requires_grad  # the rest still trains
    image = pixels().requires_grad_()
    parent(image).sum().backward()
    assert image.grad.any()  # a saliency map needs no trainable tower


@every_family
def test_gradient_checkpointing_changes_no_gradient(config):
    def gradients(tower: VisionTower) -> tuple[int, list[torch.Tensor]]:
        """Calls of linear maps, which all are in blocks, and the parameters' gradients."""
        calls = []
        hooks = [
            module.register_forward_hook(lambda *_: calls.append(1))
            for module in tower.modules()
            if isinstance(module, nn.Linear)
        ]
        tower.train().zero_grad()
        sum(level.square().sum() for level in tower(pixels(), levels=[-2, 1])).backward()
        for hook in hooks:
            hook.remove()
        return len(calls), [p.grad.clone() for p in tower.parameters()]

    tower = tower_of(config)
    calls, plain = gradients(tower)
    tower.gradient_checkpointing_enable()
    recomputed, checkpointed = gradients(tower)
    torch.testing.assert_close(checkpointed, plain)
    assert recomputed >= 1.5 * calls  # it stops early, once it has what the backward pass needs
    tower.gradient_checkpointing_disable()
    assert gradients(tower)[0] == calls


@every_family
def test_copy_and_state_dict(config):
    tower, other = tower_of(config), build_tower(config)
    twin = copy.deepcopy(tower)
    other.load_state_dict(tower.state_dict())
    assert torch.equal(twin.eval()(pixels()), tower(pixels()))
    assert torch.equal(other.eval()(pixels()), tower(pixels()))
    twin.freeze()
    assert twin.frozen and not tower.frozen


@every_family
def test_the_configuration_rebuilds_the_tower(config):
    tower = tower_of(config)
    again = build_tower(AutoConfig.for_model(**tower.config.to_dict()), tower.select_layer).eval()
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again(pixels()), tower(pixels()))
    assert again.image_mean == tower.image_mean


class ParentConfig(PreTrainedConfig):
    model_type = "slothkit_test_parent"
    sub_configs = {"vision_config": AutoConfig}

    def __init__(self, vision_config: dict | PreTrainedConfig | None = None, **kwargs):
        known = vision_config or {"model_type": "siglip_vision_model"}
        self.vision_config = AutoConfig.for_model(**known) if isinstance(known, dict) else known
        super().__init__(**kwargs)


class Parent(PreTrainedModel):
    config_class = ParentConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: ParentConfig):
        super().__init__(config)
        self.vision_tower = build_tower(config.vision_config)
        self.out = nn.Linear(32, 8)
        self.post_init()

    def forward(self, pixel_values):
        return self.out(self.vision_tower(pixel_values))


@every_family
def test_inside_a_transformers_model_saved_and_loaded(config, tmp_path):
    parent = Parent(ParentConfig(vision_config=config)).eval()
    give(tower_of(config), parent.vision_tower)
    parent.save_pretrained(tmp_path)
    again, info = Parent.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again.eval()(pixels()), parent(pixels()))
    switch_checkpointing(parent, "enable")
    parent.train()(pixels()).sum().backward()
    assert all(p.grad is not None for p in parent.parameters())


@every_family
def test_bf16(config):
    assert tower_of(config).bfloat16()(pixels(37, 30)).dtype == torch.bfloat16


def test_so400m_on_the_meta_device():
    with torch.device("meta"):
        tower = build_tower(OpenClipVisionConfig(model_name="ViT-SO400M-14-SigLIP-384"))
        shape = tower(torch.empty(1, 3, 384, 384)).shape
        twin = build_tower(
            SiglipVisionConfig(
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=27,
                num_attention_heads=16,
                image_size=384,
                patch_size=14,
            )
        )
    assert (tower.num_layers, tower.depth, shape) == (27, 26, (1, 27, 27, 1152))
    block = 4 * (1152**2 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    expected = 26 * block + 729 * 1152 + 3 * 14 * 14 * 1152 + 1152
    for model in tower, twin:
        assert sum(p.numel() for p in model.parameters()) == expected
        assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    "name, grid, dim, depth",
    [
        ("ViT-L-14-336", (24, 24), 1024, 23),
        ("ViT-H-14-CLIPA", (16, 16), 1280, 31),
        ("EVA02-L-14-336", (24, 24), 1024, 23),
        ("PE-Core-bigG-14-448", (32, 32), 1536, 49),
        ("ViTamin-L-336", (21, 21), 1024, 30),
        ("ViT-gopt-16-SigLIP2-384", (24, 24), 1536, 39),
    ],
)
def test_vits_of_open_clip_on_the_meta_device(name, grid, dim, depth):
    with torch.device("meta"):
        tower = build_tower(named(name))
        side = tower.image_size
        assert tower(torch.empty(1, 3, side, side)).shape == (1, *grid, dim)
    assert (tower.grid(), tower.dim, tower.depth) == (grid, dim, depth)


@pytest.mark.parametrize("select_layer", [0, 5, -5])
@pytest.mark.parametrize("config", [HF["siglip"], OPEN_CLIP["native"]], ids=["hf", "open_clip"])
def test_select_layer_out_of_range(config, select_layer):
    with pytest.raises(UsageError, match=rf"={select_layer}: .* 4 blocks; choose -4..-1 or 1..4$"):
        build_tower(config, select_layer)


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "model_type"),
        ({"model_type": "siglip_vision"}, "no model_type 'siglip_vision'"),
        ({"model_type": "siglip_vision_model", "hiden_size": 3}, "did you mean 'hidden_size'"),
        ({"model_type": "llama"}, "'llama' is no vision tower"),
        ({**HF["siglip"], "image_size": [30, 60]}, "square"),
        (named("ViT-B-33"), "did you mean 'ViT-B-32'"),
        (named("RN50"), "ResNet"),
        (named("convnext_base"), "must be a ViT"),
        (named("swin_base_patch4_window7_224"), "no blocks"),
        ({**named("ViT-B-16-SigLIP"), "vision_cfg": {"timm_model_name": "vit"}}, "timm has no model 'vit'"),
        ({**OPEN_CLIP["timm_siglip"], "timm_kwargs": {"depht": 3}}, "depht"),
        ({**OPEN_CLIP["native"], "vision_cfg": {"depht": 3}}, "depht"),
        ({**OPEN_CLIP["native"], "hidden_act": "gellu"}, "did you mean 'gelu'"),
        ({**HF["siglip"], "image_mean": 0.5}, "'siglip_vision_model': image_mean=0.5: expected tuple"),
        ({**HF["siglip"], "image_mean": [0.5]}, r"image_mean=\[0.5\]: expected"),
        ({**HF["siglip"], "image_mean": "abc"}, "image_mean='abc': expected"),
        ({**HF["siglip"], "image_std": [0, 0, 0]}, r"image_std=\[0, 0, 0\]: must be finite, and a deviation"),
        ({**HF["siglip"], "image_std": 0}, "image_std=0: must be finite, and a deviation not zero"),
        ({**HF["siglip"], "resample": 99}, "resample=99: choose one of 0, "),
        ({**HF["siglip"], "resample": "foo"}, "resample='foo': choose one of nearest, "),
        ({**OPEN_CLIP["native"], "resample": "foo"}, "resample='foo': choose one of nearest, "),
    ],
)
def test_bad_configurations_are_one_line_errors(config, message):
    with pytest.raises(UsageError, match=message) as error:
        build_tower(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("resample, name", [(0, "nearest"), (3, "bicubic"), ("lanczos", "lanczos")])
def test_a_configuration_states_its_preprocessing(resample, name):
    tower = build_tower({**HF["siglip"], "resample": resample, "image_mean": [0, 0.5, 1]})
    assert (tower.resample, tower.image_mean) == (name, (0, 0.5, 1))


def test_other_bad_input():
    tower = tower_of(HF["siglip"])
    with pytest.raises(UsageError, match="a 6x30 image is smaller than one 7-pixel patch"):
        tower(pixels(6, 30))
    with pytest.raises(UsageError, match="sdpa only"):
        build_tower(OPEN_CLIP["native"], attn_implementation="eager")


def test_attention_implementation():
    assert build_tower(HF["clip"]).backbone.config._attn_implementation == "sdpa"
    eager = build_tower(HF["clip"], attn_implementation="eager").eval()
    sdpa = build_tower(HF["clip"]).eval()
    give(eager, sdpa)
    assert eager.backbone.config._attn_implementation == "eager"
    torch.testing.assert_close(eager(pixels()), sdpa(pixels()), rtol=0, atol=1e-5)
