"""What a client decides, without I/O: requests, waits, errors."""
