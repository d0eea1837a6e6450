"""The report of a load test: one document, written as HTML, CSV and JSON."""
