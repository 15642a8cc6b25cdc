"""A running migration, seen from outside: its files, runs, figures and report."""
