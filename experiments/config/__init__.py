"""Settings and how they become cells: schema, presets, overrides, tables."""
