"""What is remembered from problem to problem."""
