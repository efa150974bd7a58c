"""How our plots look."""
