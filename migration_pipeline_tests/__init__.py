"""unit/: no I/O but files. integration/: a real PostgreSQL, S3 protocol and Dagster."""
