"""What every command has in common: exit codes, progress, files, processes, text tables."""
