"""What encoders are worth: measured on pictures, pairs and states."""
