"""The nouns that every room shares. Standard library only, no behaviour beyond their own invariants."""
