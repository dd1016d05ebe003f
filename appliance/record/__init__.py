"""From exchanges to rows: redact, pack, batch, store, spool; and the queries that read them."""
