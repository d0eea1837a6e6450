"""Jobs: their states, their rows, their documents, and the endpoints for them."""
