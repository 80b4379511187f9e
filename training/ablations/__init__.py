"""What one choice of the method is worth."""
