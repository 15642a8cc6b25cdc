"""The engine: moves one file's items through a profile into a target. Knows no Dagster, no DynamoDB, no business."""
