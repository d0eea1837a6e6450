"""What shows that a backend keeps the contract; ships with the package, for other people's too."""
