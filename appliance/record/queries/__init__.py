"""Reading what was recorded: lists, single records with their bodies, and statistics.

Every query is written out next to the one function that runs it. Lists go by keyset over the id (UUIDv7, newest first),
so page 10,000 costs what page 1 costs. A time window is always a window of ids, which leaves out partitions.
"""
