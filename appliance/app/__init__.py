"""The composition root: configuration, wiring, supervisor, command line. The only room that knows everybody."""
