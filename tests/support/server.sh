# Sourced by scripts that test a running server, after `set -euo pipefail`. Provides $binary, the scratch folder
# $scratch and the functions below, and cleans up however the script ends.

root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
binary=$(realpath "${1:-$root/target/release/predict-otron-9000}")
if [[ ! -x $binary ]]; then
  echo "no server binary at $binary: build it with cargo build --release" >&2
  exit 2
fi

scratch=$(mktemp -d)
log=$scratch/server.log
server=

clean_up() {
  status=$?
  if [[ $status -ne 0 && -s $log ]]; then
    echo "--- server log" >&2
    tail -n 200 "$log" >&2
  fi
  if [[ -n $server ]]; then
    kill -KILL "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$scratch"
  exit "$status"
}
trap clean_up EXIT
# Without these, an interrupt would not run the EXIT trap with a failing status.
trap 'exit 130' INT
trap 'exit 143' TERM

running() { kill -0 "$server" 2>/dev/null; }

# Starts the server with the given options and waits until it listens; sets $port.
start_server() {
  echo "--- starting $binary"
  # Otherwise the loop below may come before the server's process has made the log, or find an earlier server's port.
  : >"$log"
  "$binary" --port 0 "$@" >"$scratch/server.out" 2>"$log" &
  server=$!
  port=
  for _ in {1..600}; do # 120 s: the first start may have to download the models
    port=$(sed -n 's|.*listening on http://127\.0\.0\.1:\([0-9]\{1,\}\).*|\1|p' "$log" | head -n 1)
    if [[ -n $port ]]; then return; fi
    running || { echo "the server ended before it listened" >&2; exit 1; }
    sleep 0.2
  done
  echo "the server did not listen within 120 s" >&2
  exit 1
}

# Checks that the server still runs and shuts down cleanly on SIGTERM.
stop_server() {
  echo "--- clean shutdown"
  running || { echo "the server died during the tests" >&2; exit 1; }
  kill -TERM "$server"
  for _ in {1..100}; do # 20 s
    running || break
    sleep 0.2
  done
  if running; then
    echo "the server still runs 20 s after SIGTERM" >&2
    exit 1
  fi
  code=0
  wait "$server" || code=$?
  server=
  if [[ $code -ne 0 ]]; then
    echo "the server ended with exit code $code on SIGTERM" >&2
    exit 1
  fi
}

# Runs a file of examples/ with a command, against the port of the running server. It must print something other
# than an error.
run_example() {
  local file=$1 copy output
  shift
  copy=$scratch/$(basename "$file")
  sed "s|127\.0\.0\.1:8080|127.0.0.1:$port|" "$root/examples/$file" >"$copy"
  if output=$("$@" "$copy" 2>&1) && [[ -n $output && $output != *'"error"'* ]]; then
    echo "examples/$file: ok"
  else
    echo "examples/$file failed: $output" >&2
    return 1
  fi
}
