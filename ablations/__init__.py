"""Tables as data, statistics, plots, report."""
