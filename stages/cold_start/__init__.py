"""Cold start: the embedded task families, imperfect demonstrations, and learning from them."""
