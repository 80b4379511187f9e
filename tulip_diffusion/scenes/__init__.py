"""A synthetic world in which every detail of a prompt can be checked in the picture."""
