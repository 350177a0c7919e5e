"""Deep hashing: losses, banks of training outputs, and recipes."""
