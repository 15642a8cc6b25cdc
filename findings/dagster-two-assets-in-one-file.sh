#!/usr/bin/env bash
# dagster 1.13.27: a partition of one asset and another asset, both stored by the default I/O manager, are one file.
#
# FilesystemIOManager, which an asset has if it names none, writes each asset, and each partition of one, to a path of its own
# below $DAGSTER_HOME/storage; S3PickleIOManager of dagster-aws 0.29.27 does the same with keys of a bucket.
#
# Guess: a path of its own: the asset shop/orders, and the partition "orders" of the asset shop, are two files.
# Seen:  both are shop/orders. The one that is written later is what a reader of either gets, and nothing says so: Dagster's
#        own record has both as materialized. A slash in a partition's key does it, too: partition "b/c" of the asset a is
#        partition "c" of the asset a/b.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    dagster==1.13.27 dagster-aws==0.29.27 'moto[s3]==5.2.5' 'boto3>=1.40,<2'
cd "$work"
export AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_DEFAULT_REGION=us-east-1 DAGSTER_DISABLE_TELEMETRY=1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import logging
import sys
from pathlib import Path

import boto3
import dagster as dg
from dagster_aws.s3 import S3PickleIOManager, S3Resource
from moto import mock_aws

logging.disable(logging.CRITICAL)


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["orders", "returns"]))
def shop(context):
    return f"partition {context.partition_key} of the asset shop"


@dg.asset(key=["shop", "orders"])
def orders():
    return "the asset shop/orders"


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["b/c"]))
def a():
    return "partition b/c of the asset a"


@dg.asset(key=["a", "b"], partitions_def=dg.StaticPartitionsDefinition(["c"]))
def b():
    return "partition c of the asset a/b"


def stored(io_manager, listed):
    """What a reader gets of each of the four that were materialized, in this order, and the names of what is there."""
    instance, resources = dg.DagsterInstance.ephemeral(), {"io_manager": io_manager}
    steps = ((shop, "orders"), (orders, None), (a, "b/c"), (b, "c"))
    for asset, partition in steps:
        assert dg.materialize([asset], partition_key=partition, instance=instance, resources=resources).success
    defs = dg.Definitions(assets=[shop, orders, a, b], resources=resources)
    read = [defs.load_asset_value(asset.key, partition_key=partition, instance=instance) for asset, partition in steps]
    known = [instance.get_materialized_partitions(shop.key), instance.get_latest_materialization_event(orders.key) is not None]
    print(type(io_manager).__name__, listed(), *read, f"materialized: {known}", sep="\n    ")
    return [*read, *listed(), *known]


expected = [
    "the asset shop/orders", "the asset shop/orders", "partition c of the asset a/b", "partition c of the asset a/b",
    "a/b/c", "shop/orders", {"orders"}, True,
]  # fmt: skip
folder = Path("storage")
files = stored(dg.FilesystemIOManager(base_dir=str(folder)), lambda: sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()))
with mock_aws():
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bucket")
    objects = stored(
        S3PickleIOManager(s3_resource=S3Resource(), s3_bucket="bucket", s3_prefix="storage"),
        lambda: sorted(each["Key"].removeprefix("storage/") for each in s3.list_objects_v2(Bucket="bucket")["Contents"]),
    )
sys.exit("CHANGED" if not files == objects == expected else print("as stated above"))
PYTHON
