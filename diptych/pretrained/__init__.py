"""Other people's weights: reading and writing the layouts of other libraries."""
