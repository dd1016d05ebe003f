"""The tap ring: shared memory between one relay, which writes, and one inspector, which reads and may die."""
