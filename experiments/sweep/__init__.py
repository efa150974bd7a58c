"""Many cells: what was asked for, how it is launched, what is shown."""
