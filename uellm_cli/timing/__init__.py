"""How long things take: the roofline before anything ran, and what is made of it."""
