"""Pictures and texts on their way to the model: sources, decoding, transforms, generated scenes."""
