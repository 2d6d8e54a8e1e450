"""abduce: inference to the best explanation."""
