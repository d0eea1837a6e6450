"""The routes of jobs, and what their requests and responses contain."""
