"""The target dialect: PostgreSQL connections, DDL, COPY, upsert. Knows nothing of a source."""
