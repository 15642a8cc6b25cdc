#!/usr/bin/env bash
# isal 1.9.1: a gzip header with two optional fields, or with its checksum, cannot come in two pieces.
#
# RFC 1952 lets a member's header have four optional fields: FEXTRA, FNAME, FCOMMENT, FHCRC. `gzip` writes
# the name, dictzip FEXTRA and the name. A stream is fed to a decompressobj as it comes from the network, so a piece
# may end anywhere, inside of the header too.
#
# Guess: isal_zlib.decompressobj(wbits=31) gives the same, wherever the stream is cut in two, as zlib's does.
# Seen:  true for one optional field (not FHCRC). With FEXTRA and FNAME, or FNAME and FCOMMENT, a cut inside of the
#        fields raises IsalError ("Invalid deflate block found", "Invalid lookback distance found"): the header is read
#        again from the wrong place. With FHCRC any cut in the header raises "Incorrect checksum found". In one
#        piece all of them are read.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check isal==1.9.1
"$work/venv/bin/python" - <<'PYTHON'
import struct
import sys
import zlib

from isal import isal_zlib

DATA = b"data" * 100


def member(extra=b"", name=b"", comment=b"", checksum=False):
    flags = (4 if extra else 0) | (8 if name else 0) | (16 if comment else 0) | (2 if checksum else 0)
    header = b"\x1f\x8b\x08" + bytes([flags]) + b"\0" * 4 + b"\0\x03"
    header += struct.pack("<H", len(extra)) + extra if extra else b""
    header += name + b"\0" if name else b""
    header += comment + b"\0" if comment else b""
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF) if checksum else b""
    made = zlib.compressobj(wbits=-15)
    return header + made.compress(DATA) + made.flush() + struct.pack("<II", zlib.crc32(DATA), len(DATA))


def bad_cuts(module, stream):
    """Number of first pieces' bytes -> what is raised."""
    bad = {}
    for cut in range(1, len(stream)):
        reader = module.decompressobj(wbits=31)
        try:
            assert reader.decompress(stream[:cut]) + reader.decompress(stream[cut:]) == DATA and reader.eof
        except Exception as error:
            bad[cut] = f"{type(error).__name__}: {error}"
    return bad


EXTRA = b"RA\2\0xy"
CASES = {
    "no optional field": (member(), 0),
    "FNAME": (member(name=b"f.json"), 0),
    "FEXTRA": (member(extra=EXTRA), 0),
    "FEXTRA, FNAME": (member(extra=EXTRA, name=b"f.json"), 8),
    "FNAME, FCOMMENT": (member(name=b"f.json", comment=b"c"), 7),
    "FHCRC": (member(checksum=True), 11),
}
seen = {}
for what, (stream, expected) in CASES.items():
    whole = isal_zlib.decompressobj(wbits=31)
    assert whole.decompress(stream) == DATA and whole.eof
    assert bad_cuts(zlib, stream) == {}
    bad = bad_cuts(isal_zlib, stream)
    seen[what] = len(bad)
    print(f"{what:18} zlib: 0 bad cuts; isal: {len(bad)} of {len(stream) - 1}", sorted(set(bad.values())), list(bad))
sys.exit(seen != {what: expected for what, (_, expected) in CASES.items()})
PYTHON
echo "as stated above"
