"""Building blocks of every model: attention, blocks, patches, pooling, initialisation."""
