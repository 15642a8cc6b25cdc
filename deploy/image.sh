#!/bin/sh
# Makes the image's file system: the package with its extensions in C, everything it needs in the versions of
# constraints.txt, and an instance's settings for each way to run. The Dockerfile runs it, and so does its test.
#
#   deploy/image.sh SOURCE FOLDER [EXTRAS]
#
# FOLDER is a virtual environment; it works only where it was made. EXTRAS are those of pyproject.toml, joined by commas.
set -eu
source=$1 folder=$2 extras=${3:-celery}
python=${PYTHON:-python3}

"$python" -m venv --without-pip "$folder"
"$python" -m pip --python "$folder/bin/python" install --quiet --disable-pip-version-check --no-warn-script-location \
    -c "$source/constraints.txt" "$source[$extras]"

for home in celery ecs; do
    install -D -m 644 "$source/deploy/$home/dagster.yaml" "$folder/homes/$home/dagster.yaml"
done
install -D -m 644 "$source/dagster.production.yaml" "$folder/homes/one-machine/dagster.yaml"
install -m 644 "$source/deploy/workspace.yaml" "$folder/workspace.yaml"

# An error where there was no compiler: a run would take twice the time.
MIGRATION_ACCELERATOR=required "$folder/bin/migration-pipeline" --version
