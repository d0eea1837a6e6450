"""The sections of the results, a module for each kind of work."""
