"""Visual compressors: patch features (B, H, W, C) -> visual tokens (B, N, C'). Needs torch and einops only.

    import compressors
    sap = compressors.create("sap", dim=1152, rate=3)
    tokens = sap(features)                               # (B, 27, 27, 1152) -> (B, 81, 1152)

The methods are imported on first use: command lines answer a typo without waiting for torch.
`python -m compressors` lists them.
"""

from types import ModuleType
from typing import Any

from compressors.errors import UsageError

__all__ = ["Compressor", "UsageError", "check", "create", "knobs", "names", "register"]


def _load_builtins() -> ModuleType:
    """The contract's module, after every built-in has registered itself."""
    from compressors import (  # noqa: F401
        adaptive_avg_pool,
        avg_pool,
        base,
        c_abstractor,
        cdpruner,
        conv_downsample,
        d_abstractor,
        dct,
        divprune,
        downsample,
        hiprune,
        holov,
        identity,
        interpolate,
        ldp,
        ldpv2,
        matryoshka,
        mmtok,
        patch_merger,
        pixel_shuffle,
        prumerge,
        prunesid,
        qformer,
        quecc,
        random,
        resampler,
        resampler_2d,
        sap,
        scope,
        slothmix,
        token_packer,
        tome,
        trim,
        uniform,
        visionselector,
        visionzip,
        vispruner,
        vscan,
        window_attention_pool,
    )

    return base


def __getattr__(name: str) -> Any:
    # PEP 562: torch is imported with the first name that needs it, not by `import compressors`
    if name in {"Compressor", "register"}:
        return getattr(_load_builtins(), name)
    if name in {"create", "names", "knobs", "check"}:
        return getattr(_load_builtins().registry, name)
    raise AttributeError(f"module 'compressors' has no attribute {name!r}")
