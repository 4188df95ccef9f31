"""The models: image tower, text tower, and the dual encoder made of both."""
