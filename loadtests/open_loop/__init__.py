"""A load whose requests are sent when they are planned, however slow the service is."""
