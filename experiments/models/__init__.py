"""A cell's model: built from pretrained parts, with random weights, or read back."""
