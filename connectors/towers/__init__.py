"""Vision towers: an image of any size -> patch features (B, H, W, C)."""
