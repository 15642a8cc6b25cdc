#!/usr/bin/env bash
# dagster-celery 0.29.27: a worker's configuration file is read at one place only, and what stands elsewhere is passed over.
#
# `dagster-celery worker start --help` says of --config-yaml: "the same config block that you provide to celery_executor when
# configuring a job". In dagster.yaml, CeleryRunLauncher takes that very block below `config`.
#
# Guess: a file with that block works, and one with a name that is not known is refused, as Dagster refuses it everywhere else.
# Seen:  only what stands below `execution.config` is read. `broker` at the top of the file, below `config`, or below `execution`
#        leaves the worker with AMQP on its own machine, without a word; so does a word that is misspelled at the top. Below
#        execution.config a misspelled word raises.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dagster-celery==0.29.27 dagster==1.13.27
cd "$work"
DAGSTER_HOME="$work" DAGSTER_DISABLE_TELEMETRY=1 "$work/venv/bin/python" - <<'PYTHON'
from pathlib import Path

from dagster_celery.cli import get_app, get_validated_config

OURS = "redis://broker.example:6379/0"
FILES = {
    "broker, at the top": f"broker: {OURS}\n",
    "config.broker": f"config:\n  broker: {OURS}\n",
    "execution.broker": f"execution:\n  broker: {OURS}\n",
    "brokr, at the top": f"brokr: {OURS}\n",
    "execution.config.broker": f"execution:\n  config:\n    broker: {OURS}\n",
    "execution.config.brokr": f"execution:\n  config:\n    brokr: {OURS}\n",
}
seen = {}
for name, text in FILES.items():
    Path("celery.yaml").write_text(text)
    try:
        worker = get_validated_config("celery.yaml").get("broker")
        seen[name] = "ours" if worker == OURS == get_app("celery.yaml").conf.broker_url else "passed over"
    except Exception as error:
        seen[name] = type(error).__name__
    print(f"{name:24} {seen[name]}")
assert list(seen.values()) == ["passed over"] * 4 + ["ours", "DagsterInvalidConfigError"], "this has changed"
PYTHON
