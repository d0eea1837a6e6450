"""The parts of the Locust test: users that create jobs and poll them until they end."""
