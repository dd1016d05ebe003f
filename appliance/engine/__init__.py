"""The data plane: accept, decide, dial, forward; and, in other processes, inspect what was forwarded."""
