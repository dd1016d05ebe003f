"""HTTP/1.1 request by request: what a forward proxy (absolute-form) and the reverse listener need beyond relaying.

The seam to ``engine.worker``::

    router = routing.Reverse(settings.direct_http)              # or routing.AbsoluteForm(users); one per process
    client.ForwardClient(gate, "direct_http", router)           # as the protocol factory of create_server, or
    protocol = client.ForwardClient(gate, "mixed", router)      # after a handshake's Step.forward:
    transport.set_protocol(protocol)
    protocol.adopt(transport, step.rest)

By ``connection_made`` the client asks ``gate.admit`` itself; by ``adopt`` the caller has done so. In both cases the
client is in ``gate.live`` while it is open and calls ``gate.closed`` exactly once. What it needs of the gate is
``client.Gate``.
"""
