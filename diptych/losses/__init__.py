"""The objectives: each file gives the losses of one kind, with gradients, and no model."""
