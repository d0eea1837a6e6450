"""One module for each revision of the tables, the first one first."""
