"""Teachers: models that judge every token of a completion."""
