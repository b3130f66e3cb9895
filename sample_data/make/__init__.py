"""Scripts that build the shipped tiny model from nothing but their own text."""
