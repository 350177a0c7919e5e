"""The command line: one file per verb, which reads its arguments, calls the library and prints what comes back."""
