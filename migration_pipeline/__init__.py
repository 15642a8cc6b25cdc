"""Moves a DynamoDB table, exported to S3, into PostgreSQL through Dagster.

This package exports the vocabulary of a profile, and nothing else: a profile imports from here only,
so that reading or testing one needs neither Dagster nor a database.
"""

from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.item import (
    AnyInt,
    EpochMillis,
    EpochSeconds,
    Item,
    RestOfItem,
    WholeItem,
    attribute,
)
from migration_pipeline.profile.profile import Profile, prefix
from migration_pipeline.profile.row import BigInt, Fitted, Integer, Merge, PgType, Row, SmallInt, column

__all__ = [
    "AnyInt",
    "BigInt",
    "EpochMillis",
    "EpochSeconds",
    "Fitted",
    "Integer",
    "Item",
    "Merge",
    "Options",
    "PgType",
    "Profile",
    "RestOfItem",
    "Row",
    "SmallInt",
    "WholeItem",
    "attribute",
    "column",
    "prefix",
]
