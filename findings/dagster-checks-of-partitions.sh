#!/usr/bin/env bash
# dagster 1.13.27: where files are partitions, a blocking check that failed for one of them does not hold back what is made of all of them.
#
# AutomationCondition.all_deps_blocking_checks_passed() asks for an asset only once the blocking checks of those above have passed. A
# check may have the asset's partitions (partitions_def), or none.
#
# Guess: with a check a partition, an asset that is made of all partitions waits until none of them is left with a failed check.
# Seen:  it is asked for as soon as one partition has passed. An asset with the same partitions is held back as it should be: that
#        partition alone.
#
# Guess: a check without partitions, on an asset with some, is failed as long as it failed for one of them.
# Seen:  what it said last holds for all. Failed for b and then passed for c, it has passed, and b itself is asked for below; passed for
#        c and then failed for b, nothing is asked for, not even a and c.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dagster==1.13.27
cd "$work"
DAGSTER_DISABLE_TELEMETRY=1 "$work/venv/bin/python" -W ignore - <<'PYTHON'
import logging
import sys

import dagster as dg

logging.disable(logging.CRITICAL)
files = dg.StaticPartitionsDefinition(["a", "b", "c"])
passed = dg.AutomationCondition.any_deps_updated() & dg.AutomationCondition.all_deps_blocking_checks_passed()


@dg.asset(partitions_def=files)
def loaded():
    return dg.MaterializeResult()


@dg.asset(partitions_def=files, deps=[loaded], automation_condition=passed)
def of_each():
    return dg.MaterializeResult()


@dg.asset(deps=[loaded], automation_condition=passed)
def of_all():
    return dg.MaterializeResult()


def conserved(context):
    return dg.AssetCheckResult(passed=context.run.tags["dagster/partition"] != "b")


kinds = {
    "a check a partition": dg.asset_check(asset=loaded, blocking=True, name="conserved", partitions_def=files)(conserved),
    "a check for all": dg.asset_check(asset=loaded, blocking=True, name="conserved")(conserved),
}


def asked_for(check, order):
    """What is to be made after these partitions were loaded and checked, one after the other: of each, and of all."""
    definitions = dg.Definitions(assets=[loaded, of_each, of_all], asset_checks=[check])
    with dg.DagsterInstance.ephemeral() as instance:
        before = dg.evaluate_automation_conditions(definitions, instance=instance)
        for partition in order:
            dg.materialize([loaded, check], partition_key=partition, instance=instance, raise_on_error=False)
        after = dg.evaluate_automation_conditions(definitions, instance=instance, cursor=before.cursor)
    return "".join(sorted(after.get_requested_partitions(of_each.key))), bool(after.get_num_requested(of_all.key))


expected = {  # the check fails for b
    ("a check a partition", "b"): ("", False),
    ("a check a partition", "abc"): ("ac", True),
    ("a check a partition", "acb"): ("ac", True),
    ("a check for all", "b"): ("", False),
    ("a check for all", "abc"): ("abc", True),
    ("a check for all", "acb"): ("", False),
}
wrong = 0
for (kind, order), stated in expected.items():
    seen = asked_for(kinds[kind], order)
    print(f"{kind:20} loaded {order:4} of each: {seen[0] or 'none':5} of all: {seen[1]}")
    if seen != stated:
        print("    CHANGED; it was:", *stated)
        wrong = 1
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
