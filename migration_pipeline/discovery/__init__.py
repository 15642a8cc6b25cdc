"""What an export holds, found out by looking: entity types by their keys, attributes and what they would fit."""
