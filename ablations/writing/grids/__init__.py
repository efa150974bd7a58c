"""Grids of words: what tables and claims of a report say, whatever it is written in."""
