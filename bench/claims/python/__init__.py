"""The claims' work in plain Python, and a process that does it when told to."""
