"""Any Hugging Face causal LM with visual tokens and a query module."""
