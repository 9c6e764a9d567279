"""The networks, and the files they come from."""
