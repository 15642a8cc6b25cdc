#!/usr/bin/env bash
# rich 15.0.0: a line that Ctrl-C interrupts just after it was shown is shown once more by the next print.
#
# A program says that Ctrl-C ends it, waits, and says that it ends. Somebody presses as soon as the first line is on the screen: before
# the call that printed it has come back.
#
# Guess: each line is shown once, as with print().
# Seen:  the console drops what it has gathered only after the stream's write and flush have come back. KeyboardInterrupt leaves it
#        there, and the next print writes it again before its own line; print() writes each line once.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rich==15.0.0
"$work/venv/bin/python" - <<'PYTHON'
import io
import os
import signal
from functools import partial

from rich.console import Console

signal.signal(signal.SIGINT, signal.default_int_handler)


class Screen(io.StringIO):
    """Somebody presses Ctrl-C once, when there is something to read."""

    pressed = False

    def write(self, text):
        count = super().write(text)
        if text.strip() and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return count


def run(show, screen):
    try:
        show("press Ctrl-C")
    except KeyboardInterrupt:
        show("ending")
    return screen.getvalue().splitlines()


screen = Screen()
seen = run(Console(file=screen).print, screen)
plain = Screen()
other = run(partial(print, file=plain), plain)
print("rich: ", seen)
print("print:", other)
assert seen == ["press Ctrl-C", "press Ctrl-C", "ending"], "a line is no longer shown twice"
assert other in (["press Ctrl-C", "ending"], ["press Ctrl-Cending"]), "print() does so as well"
PYTHON
