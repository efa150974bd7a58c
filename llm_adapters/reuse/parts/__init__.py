"""What `attach` puts into a model, and how it acts there."""
