#!/usr/bin/env bash
# Builds the CPU kernels with the address and undefined-behaviour sanitizers and calls every one of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=$(mktemp -d "${TMPDIR:-/tmp}/paw-fast-sanitize.XXXXXX")
trap 'rm -rf "$build"' EXIT
cmake -S . -B "$build" -DPAW_FAST_SANITIZE=address,undefined >"$build/configure.log" || { cat "$build/configure.log"; exit 1; }
cmake --build "$build" -j "${PAW_FAST_CI_JOBS:-2}" >"$build/build.log" 2>&1 || { tail -n 60 "$build/build.log"; exit 1; }
"$build/paw_sanitize"
