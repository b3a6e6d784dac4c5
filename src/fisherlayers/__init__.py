"""Fisher layers: natural gradient by reconstruction, and Deep Fisher Networks, on one core."""
