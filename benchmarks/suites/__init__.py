"""What is measured, a file for each kind of work. Every section is a function that returns it."""
