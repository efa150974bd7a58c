"""What lies between the image and the language model: vision towers, projectors, query modules, fusion."""
