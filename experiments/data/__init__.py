"""Data: the embedded benchmark PictureVQA and the LLaVA-format loader."""
