"""MegaContext: an endless history for a frozen language model, in JAX."""
