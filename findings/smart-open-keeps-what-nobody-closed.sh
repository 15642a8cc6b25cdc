#!/usr/bin/env bash
# smart-open 9.0.2: an object on S3 is replaced by a half of the new one, or by nothing, when its writer is given up.
#
# S3 has no half objects: a PUT or a multipart upload is there once it is complete, and until then the object that was there.
# smart-open keeps to that: an exception inside of `with smart_open.open(uri, "wb")` ends the upload, and the old object stays.
#
# Guess: so does a writer that is never closed: a generator that is not read to its end, an exception before close().
# Seen:  the garbage collector closes it, which completes the upload: the half that was written replaces the object. `with
#        io.TextIOWrapper(smart_open.open(…))` and contextlib.closing do so even in a with.
#
# Guess: when open() itself raises, nothing has happened.
# Seen:  where the compression's package is missing (.zst, .lz4), where it refuses an option, or Python knows no such encoding,
#        the upload had begun, and is completed: the object has 0 bytes. Only a compression of an unknown name is refused before.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'smart-open[s3]==9.0.2' 'moto[s3]==5.2.5'
export AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_DEFAULT_REGION=us-east-1
"$work/venv/bin/python" - <<'PYTHON'
import contextlib
import gc
import io

import boto3
import smart_open
from moto import mock_aws


class Mine(Exception):
    pass


def half_of(file):
    file.write("half" if isinstance(file, io.TextIOBase) else b"half")
    raise Mine


def in_with(uri, wrap=lambda file: file):
    with wrap(smart_open.open(uri, "wb")) as file:
        half_of(file)


def in_generator(uri):
    def lines():
        file = smart_open.open(uri, "wb")
        file.write(b"half")
        yield
        file.close()

    next(lines())


CASES = {
    "exception in with": ("key", in_with, "Mine", b"old"),
    "exception, no with": ("key", lambda uri: half_of(smart_open.open(uri, "wb")), "Mine", b"half"),
    "generator, given up": ("key", in_generator, "", b"half"),
    "in TextIOWrapper": ("key", lambda uri: in_with(uri, io.TextIOWrapper), "Mine", b"half"),
    "in closing": ("key", lambda uri: in_with(uri, contextlib.closing), "Mine", b"half"),
    "package missing": ("key.lz4", lambda uri: smart_open.open(uri, "wb"), "ModuleNotFoundError", b""),
    "option refused": ("key.gz", lambda uri: smart_open.open(uri, "wb", compression_kwargs={"level": 9}), "TypeError", b""),
    "no such encoding": ("key", lambda uri: smart_open.open(uri, "w", encoding="latin-99"), "LookupError", b""),
    "no such compression": ("key", lambda uri: smart_open.open(uri, "wb", compression="lzip"), "ValueError", b"old"),
}
changed = []
with mock_aws():
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bucket")
    for name, (key, write, expected, left) in CASES.items():
        s3.put_object(Bucket="bucket", Key=key, Body=b"old")
        raised = ""
        try:
            write(f"s3://bucket/{key}")
        except Exception as error:
            raised = type(error).__name__
        gc.collect()
        body = s3.get_object(Bucket="bucket", Key=key)["Body"].read()
        print(f"{name:20} raised {raised or 'nothing':20} the object: {body}")
        if (raised, body) != (expected, left):
            changed.append(name)
assert not changed, f"CHANGED: {changed}"
print("as stated above")
PYTHON
