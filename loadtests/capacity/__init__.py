"""A model of the capacity of the service: what a number of pollers needs."""
