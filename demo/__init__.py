"""The page that sets text encoders side by side."""
