"""What a backend is."""
