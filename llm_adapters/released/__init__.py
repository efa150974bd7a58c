"""Released FlashSloth checkpoints to our layout and back."""
