"""How the tiny tower and language model that ship with the repository were pretrained."""
