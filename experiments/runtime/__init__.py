"""What every command has in common: progress, files, processes, text tables."""
