"""The vocabulary of a profile: items, rows, aggregates, rules."""
