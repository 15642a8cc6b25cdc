"""Finds out what an export holds: entity types by their keys, their attributes, and the types these fit."""
