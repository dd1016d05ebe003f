"""The real product in network namespaces: client, gateway, origin. See ``conftest`` for the fixtures."""
