"""How a client reaches us, and says where it wants to go."""
