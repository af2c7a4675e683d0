#!/bin/sh
# Install what tests and examples drive for real: Prometheus with promtool, VictoriaMetrics, and
# Chromium.
# Where they are on the PATH already, nothing is done.
set -eu

missing=""
command -v prometheus >/dev/null && command -v promtool >/dev/null || missing="prometheus"
command -v victoria-metrics >/dev/null || missing="$missing victoria-metrics"
command -v chromium >/dev/null || missing="$missing chromium"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "install these first, then run again: $missing" >&2
    exit 1
fi
sudo=""
[ "$(id -u)" -eq 0 ] || sudo="sudo"
# RUNLEVEL=1 keeps the packages from starting daemons.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
$sudo apt-get update -qq
# shellcheck disable=SC2086  # several packages, on purpose
$sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
