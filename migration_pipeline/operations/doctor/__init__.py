"""Looks at all that a migration needs before it begins, and says of each part what is there and what lacks."""
