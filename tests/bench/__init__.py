"""Measure Weir beside its peers: ``./run bench relay`` and ``./run bench http``.

Every contender gets three network namespaces of its own, is started fresh for every round, and runs alone. Rounds
are interleaved, so that a slow minute of the machine is shared by all. A run counts only with proof that the traffic
took the contender's path: its processor time moved, the origin saw the gateway and not the client, and for Weir every
request of the origin's own log is a row in Postgres. See docs/performance.md.
"""
