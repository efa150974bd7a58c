"""The tiny tower and language model that ship with the repository, and the commands that made them."""
