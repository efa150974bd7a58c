"""What a model costs: tokens, parameters, FLOPs, memory, time to the first token, training steps."""
