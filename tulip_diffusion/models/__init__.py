"""The encoder, its positions, and its files."""
