"""PictureVQA, the embedded benchmark: scenes, their drawings, questions and captions."""
