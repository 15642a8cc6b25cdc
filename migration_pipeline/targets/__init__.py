"""The target dialect: PostgreSQL connections, catalog, DDL, COPY, comparison. Knows nothing of a source."""
