"""Pure decisions: the filter language, and what it compiles to."""
