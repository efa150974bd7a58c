"""Knobs with which images have token counts of their own, by the compressor's name."""

VARYING: dict[str, dict] = {
    "mmtok": {"coverage": 0.5},
    "scope": {"coverage": 0.8},
    "trim": {"iqr": 1.5, "per_image": True},
}
