"""Conversion of the small backbones that registry packages ship."""
