"""Forward first, copy second. Understands nothing."""
