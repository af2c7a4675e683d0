#!/bin/sh
# A Dask cluster for `tbforensics --scheduler` on machines that you reach by SSH: no service, no
# root, nothing to install but the kit.
#
#   HOSTS="a b c" PROJECT=/srv/forensics sh cluster.sh start    # the first also has the scheduler
#   HOSTS="a b c" PROJECT=/srv/forensics sh cluster.sh status
#   HOSTS="a b c" PROJECT=/srv/forensics sh cluster.sh stop
#
# PROJECT  the folder that holds incidents/; shared by all hosts under the same path
# BIN      where `dask` is, on every host                        (PROJECT/.venv/bin)
# PORT     of the scheduler                                      (8786)
# WORKERS  on each host, of one thread each                      (as many as it has cores)
# MEMORY   of each                                               (3GB)
# PROTOCOL tcp, or tls with Dask's settings for it in SECRETS     (tcp)
# SECRETS  a file on every host that exports TBFORENSICS_*; its mode is 600   (none)
set -eu
: "${HOSTS:?name the hosts, the first for the scheduler too}"
: "${PROJECT:?name the folder that all of them share}"
BIN=${BIN:-$PROJECT/.venv/bin}
PORT=${PORT:-8786}
WORKERS=${WORKERS:-'$(nproc)'} # counted there
MEMORY=${MEMORY:-3GB}
PROTOCOL=${PROTOCOL:-tcp}
SECRETS=${SECRETS:-/dev/null}
RUN=$PROJECT/.dask # who runs, and what it says
first=${HOSTS%% *}
scheduler=$PROTOCOL://$first:$PORT

on() { # HOST COMMAND
    ssh -o BatchMode=yes "$1" "$2"
}

begin() { # HOST NAME COMMAND: it goes on when we are gone
    here=$RUN/$1.$2
    on "$1" "mkdir -p '$RUN' && cd '$PROJECT' && . '$SECRETS' &&
        { setsid $3 > '$here.log' 2>&1 < /dev/null & echo \$! > '$here.pid'; }"
}

each() { # COMMAND: with $here and $pid, on the host of each process that was begun
    for host in $HOSTS; do
        for name in worker scheduler; do
            file=$RUN/$host.$name
            on "$host" "test ! -f '$file.pid' || { here='$file'; pid=\$(cat '$file.pid'); $1; }"
        done
    done
}

case ${1:-} in
start)
    begin "$first" scheduler "'$BIN/dask' scheduler --host $first --port $PORT \
        --protocol $PROTOCOL --no-dashboard"
    for host in $HOSTS; do
        # One whose scheduler is gone for a minute ends by itself.
        begin "$host" worker "'$BIN/dask' worker $scheduler --host $host --protocol $PROTOCOL \
            --nworkers $WORKERS --nthreads 1 --memory-limit $MEMORY --local-directory /tmp \
            --death-timeout 60 --no-dashboard"
    done
    echo "tbforensics batch parameters/*.yaml --scheduler $scheduler"
    ;;
status)
    each 'kill -0 $pid 2> /dev/null && word=runs || word=ended; echo "${here##*/} $pid $word"'
    ;;
stop)
    each 'kill -- -$pid 2> /dev/null; rm "$here.pid"'
    ;;
*)
    echo "usage: HOSTS=... PROJECT=... sh cluster.sh start|status|stop" >&2
    exit 2
    ;;
esac
