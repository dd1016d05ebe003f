"""What an inspector knows beyond single connections: the protocols, and what each server spoke last time."""
