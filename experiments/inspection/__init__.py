"""Looking inside a trained model: conversations, attention, where tokens come from."""
