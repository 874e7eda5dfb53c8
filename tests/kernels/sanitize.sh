#!/usr/bin/env bash
# Builds the CPU kernels, and the CUDA kernels for the emulator, with the address and undefined-behaviour sanitizers and
# then with the thread sanitizer, and calls every one of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=$(mktemp -d "${TMPDIR:-/tmp}/paw-fast-sanitize.XXXXXX")
trap 'rm -rf "$work"' EXIT
emulate=OFF
if [ "$(uname -m)" = x86_64 ]; then emulate=ON; fi
for kind in address,undefined thread; do
  build=$work/${kind%%,*}
  cmake -S . -B "$build" -DPAW_FAST_SANITIZE="$kind" -DPAW_FAST_EMULATE="$emulate" >"$work/log" || { cat "$work/log"; exit 1; }
  cmake --build "$build" -j "${PAW_FAST_CI_JOBS:-2}" >"$work/log" 2>&1 || { tail -n 60 "$work/log"; exit 1; }
  echo "$kind"
  "$build/paw_sanitize"
done
