"""What the commands and Dagster share: the plan, verification, replay, verdicts. Knows nothing of Dagster."""
