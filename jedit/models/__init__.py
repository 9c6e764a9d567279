"""Pure functions of decoders, and their files."""
