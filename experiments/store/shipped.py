"""The parts that this project ships, each with the version of its code.

Counted up when a change to a part alters its results: the version is then in the keys of all stages that use
it, and their rows are computed again. 0: as it was shipped first, in no key. A part that is not in this list
is somebody's own, and its code itself is in the keys (`part_code.py`).
"""

SHIPPED_VERSIONS: dict[str, dict[str, int]] = {  # by what a registry calls its parts
    "compressor": {
        "adaptive_avg_pool": 0,
        "avg_pool": 0,
        "c_abstractor": 0,
        "conv_downsample": 0,
        "d_abstractor": 0,
        "dct": 0,
        "divprune": 0,
        "downsample": 0,
        "hiprune": 0,
        "holov": 0,
        "identity": 0,
        "interpolate": 0,
        "ldp": 0,
        "ldpv2": 0,
        "matryoshka": 0,
        "mmtok": 0,
        "patch_merger": 0,
        "pixel_shuffle": 0,
        "prumerge": 0,
        "prunesid": 0,
        "qformer": 0,
        "random": 0,
        "resampler": 0,
        "resampler_2d": 0,
        "sap": 0,
        "scope": 0,
        "slothmix": 0,
        "token_packer": 0,
        "tome": 0,
        "uniform": 0,
        "visionzip": 0,
        "vispruner": 0,
        "vscan": 0,
        "window_attention_pool": 0,
    },
    "query module": {"embq": 0},
    "projector": {"identity": 0, "linear": 0, "mlp2x_gelu": 0},
    "metric": {"anls": 0, "choice": 0, "exact": 0, "mme": 0, "pope": 0, "relaxed": 0, "vqa": 0},
    "pruner": {
        "dart": 0,
        "fastv": 0,
        "fitprune": 0,
        "gprune": 0,
        "pyramid_drop": 0,
        "random_drop": 0,
        "sparsevlm": 0,
        "vtw": 0,
    },
}
