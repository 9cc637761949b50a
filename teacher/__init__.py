"""The teacher stage: decoder and rows in, gradient features and scores out."""
