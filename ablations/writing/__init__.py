"""A report's grids as text, LaTeX, a page and plots."""
