"""What is built on the running product: the lab, and later replay, diff, export."""
