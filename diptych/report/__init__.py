"""What a person reads after a run: figures, and one self-contained HTML page."""
