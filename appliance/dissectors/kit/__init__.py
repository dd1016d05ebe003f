"""What every protocol is made of: the shape of a dissector, its verdicts, its violations."""
