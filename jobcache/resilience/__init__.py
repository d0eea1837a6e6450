"""How a remote backend may fail without failing a poll."""
