"""Using a trained model: pictures and texts in, arrays out."""
