"""What the composed model does, in the order of a forward pass: images to visual tokens (`image_encoding`),
token ids to what the LLM reads (`sequence`), hidden states to logits or a loss (`output`), and around it all
`generate` (`generation`)."""
