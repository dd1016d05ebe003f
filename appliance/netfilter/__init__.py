"""The kernel side: ruleset, sets, routing, doctor. All by netlink, no subprocess."""
