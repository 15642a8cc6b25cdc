#!/usr/bin/env bash
# Celery 5.7.0 with RabbitMQ: a worker that is busy takes another task, though a worker beside it has nothing to do.
#
# Celery's `worker_disable_prefetch` is described as "Disable broker prefetching … Workers fetch tasks only when they are ready".
#
# Guess: with it, a prefetch multiplier of 1 and one process a worker, a task goes to a worker that is free.
# Seen:  that is so with Redis. With any other broker the setting is ignored, with a warning in the worker's log. A task is acknowledged
#        when it begins, and then RabbitMQ gives the worker the next one, by turns with the others: it waits until the first has ended.
#        Acknowledging late would hold it back, but then RabbitMQ hands a task out again whose worker is lost, or that takes longer than
#        half an hour (its consumer_timeout).
#
# Needs RabbitMQ (Debian's package rabbitmq-server); runs one of its own, in a temporary folder, at free ports.
set -euo pipefail
work="$(mktemp -d)"
started=()
end() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
    epmd -port "$names" -kill >/dev/null || true # which RabbitMQ has started
    rm -rf "$work"
}
names=0
trap end EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check celery==5.7.0
cd "$work"
read -r port dist names < <(python3 -c '
import socket
probes = [socket.socket() for _ in range(3)]
for probe in probes: probe.bind(("127.0.0.1", 0))
print(*(probe.getsockname()[1] for probe in probes))')
printf 'listeners.tcp.1 = 127.0.0.1:%s\n' "$port" >rabbitmq.conf
echo '[].' >plugins
export ERL_EPMD_PORT="$names" ERL_EPMD_ADDRESS=127.0.0.1
env HOME="$work" RABBITMQ_NODENAME="finding$port@localhost" RABBITMQ_DIST_PORT="$dist" RABBITMQ_MNESIA_BASE="$work/mnesia" \
    RABBITMQ_LOG_BASE="$work/rabbitmq-log" RABBITMQ_CONFIG_FILE="$work/rabbitmq.conf" RABBITMQ_CONF_ENV_FILE=/dev/null \
    RABBITMQ_ENABLED_PLUGINS_FILE="$work/plugins" /usr/lib/rabbitmq/bin/rabbitmq-server >rabbitmq.out 2>&1 &
started+=($!)

cat >app.py <<PYTHON
import time
from celery import Celery

app = Celery("app", broker="amqp://guest:guest@127.0.0.1:$port//", set_as_current=False)
app.conf.update(
    worker_disable_prefetch=True, worker_prefetch_multiplier=1, task_acks_late=False, worker_concurrency=1,
    broker_connection_retry_on_startup=True, worker_hijack_root_logger=False,
)

@app.task(name="work", bind=True)
def work(self, name, seconds):
    with open("log", "a") as log:
        log.write(f"{time.time():.1f} {name} begins at {self.request.hostname.partition('@')[0]}\n")
    time.sleep(seconds)
    with open("log", "a") as log:
        log.write(f"{time.time():.1f} {name} ends\n")
PYTHON
for name in one two; do
    "$work/venv/bin/celery" -A app worker --hostname="$name@%h" --without-gossip --without-mingle >"$name.out" 2>&1 &
    started+=($!)
done
"$work/venv/bin/python" - <<'PYTHON'
import time
from pathlib import Path

from kombu.exceptions import OperationalError

from app import app

deadline = time.monotonic() + 120
while True:
    try:
        if len(app.control.ping(timeout=2)) == 2:
            break
    except OperationalError:
        time.sleep(1)
    assert time.monotonic() < deadline, "RabbitMQ or a worker does not start"
app.send_task("work", ["slow", 20])
log = Path("log")
while not log.exists():
    time.sleep(0.2)
for number in range(4):  # the other worker could do them all at once
    app.send_task("work", [f"quick {number}", 0])
while log.read_text().count("ends") < 5:
    time.sleep(0.5)
print(log.read_text())
lines = [line.split(" ", 1)[1] for line in log.read_text().splitlines()]
late = [line for line in lines[lines.index("slow ends") :] if "begins" in line]
print("\n".join(line for name in ("one", "two") for line in Path(f"{name}.out").read_text().splitlines() if "prefetch" in line))
assert late, "this has changed"
print(f"{len(late)} of 4 quick tasks waited for the slow one")
PYTHON
