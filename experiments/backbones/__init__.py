"""Backbones without a model hub: `tiny` ships with the repository, `small` comes out of registry packages."""
