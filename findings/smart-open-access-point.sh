#!/usr/bin/env bash
# smart-open 9.0.2: the URI of an object behind an S3 access point names another bucket and another key.
#
# boto3 takes an access point's ARN wherever it takes a bucket, and AWS's own tools write s3://ARN/key.
#
# Guess: smart_open.open("s3://arn:aws:s3:…:accesspoint/mine/folder/key") reads the key folder/key of the access point mine.
# Seen:  it splits at the first slash, which is inside of the ARN: the bucket is arn:aws:s3:…:accesspoint, which S3's
#        clients refuse as no bucket, and the key is mine/folder/key. With the ARN's other spelling, accesspoint:mine, it is
#        right; so is smart_open.s3.open(bucket, key), which takes both apart.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'smart-open[s3]==9.0.2'
"$work/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from smart_open.s3 import parse_uri

print("smart-open", version("smart-open"))
account = "arn:aws:s3:eu-west-1:123456789012:accesspoint"
seen = {}
for name in ("/mine", ":mine"):
    found = parse_uri(f"s3://{account}{name}/folder/key")
    seen[name] = (found["bucket_id"], found["key_id"])
    print(f"s3://{account}{name}/folder/key\n    bucket {seen[name][0]}\n    key    {seen[name][1]}")
assert seen["/mine"] == (account, "mine/folder/key"), "CHANGED"
assert seen[":mine"] == (f"{account}:mine", "folder/key"), "CHANGED"
print("as stated above")
PYTHON
