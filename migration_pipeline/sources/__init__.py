"""The source dialect: manifests, streams and items of a DynamoDB export. Knows nothing of a target."""
