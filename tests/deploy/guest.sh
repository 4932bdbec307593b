#!/bin/bash
# Runs in the guest that tests/deploy/units.py boots, after systemd has started. What it prints is the test's result.
# Arguments: the port, "notify" if the binary knows sd_notify, and "onnx" if ONNX Runtime is here.
set -euo pipefail

unit=predict-otron-9000
url=http://127.0.0.1:$1
fail() {
  echo "failed: $*"
  systemctl status --no-pager --full "$unit.service" "$unit.socket" || true
  journalctl --no-pager -n 50 -u "$unit" || true
  exit 1
}
get() { curl --silent --fail --max-time 60 -H "authorization: Bearer secret-of-the-test" "$@"; }

systemctl start "$unit.service" || fail "the service does not start"
if [[ $2 != notify ]]; then
  for _ in {1..100}; do get "$url/readyz" >/dev/null && break; sleep 0.2; done
fi
# With sd_notify the service counts as started only when requests can be answered.
get "$url/readyz" >/dev/null || fail "/readyz does not answer 200 after the start"
curl --silent --fail "$url/v1/models" >/dev/null && fail "requests are answered without the key of the credential"
chat='{"model": "default", "temperature": 0, "messages": [{"role": "user", "content": "What is the capital of France?"}]'
get "$url/v1/chat/completions" -H 'content-type: application/json' -d "$chat}" | grep -q Paris || fail "no chat"
# A trial of a grammar starts a process and sets its limits.
get "$url/v1/chat/completions" -H 'content-type: application/json' -d "$chat, \"guided_choice\": [\"Rome\"]}" |
  grep -q Rome || fail "no grammar"
get "$url/v1/embeddings" -H 'content-type: application/json' -d '{"model": "default", "input": "Say hello."}' |
  grep -q embedding || fail "no embedding"
[[ $(systemctl show -p User -p DynamicUser --value "$unit") == *yes* ]] || fail "not a dynamic user"
[[ $(stat -c %U "/proc/$(systemctl show -p MainPID --value "$unit")") != root ]] || fail "runs as root"
[[ -d /var/lib/private/$unit/state ]] || fail "no state in the state directory"

systemctl reload "$unit" || fail "no reload"
get "$url/readyz" >/dev/null || fail "not ready after the reload"

if [[ $2 == notify ]]; then
  # Clients that come while the service restarts wait for the new process instead of being refused.
  n_failed=0
  systemctl restart "$unit" &
  while kill -0 $! 2>/dev/null; do get "$url/v1/models" >/dev/null || n_failed=$((n_failed + 1)); done
  wait $! || fail "no restart"
  [[ $n_failed == 0 ]] || fail "$n_failed requests failed during the restart"
  echo "0 requests failed during a restart;"
fi
systemctl stop "$unit.socket" "$unit.service" || fail "no stop"
[[ $(systemctl show -p Result -p ExecMainStatus --value "$unit" | tr '\n' ' ') =~ ^(success 0|0 success) ]] ||
  fail "no clean stop: $(systemctl show -p Result -p ExecMainStatus "$unit")"
if [[ ${3:-} == onnx ]]; then
  # Its library must work without memory that is writable and executable, too.
  mkdir -p "/run/systemd/system/$unit.service.d"
  cat >"/run/systemd/system/$unit.service.d/zz-onnx.conf" <<'EOF'
[Service]
Environment=PREDICT_OTRON_EMBEDDING_MODEL=/mnt/bert-onnx PREDICT_OTRON_EMBEDDING_BACKEND=fastembed
Environment=ORT_DYLIB_PATH=/mnt/libonnxruntime.so
EOF
  systemctl daemon-reload
  systemctl start "$unit.service" || fail "the service does not start with an ONNX model"
  for _ in {1..100}; do get "$url/readyz" >/dev/null && break; sleep 0.2; done
  get "$url/v1/embeddings" -H 'content-type: application/json' -d '{"input": "Say hello."}' | grep -q embedding ||
    fail "no embedding of ONNX Runtime"
  grep -q libonnxruntime "/proc/$(systemctl show -p MainPID --value "$unit")/maps" || fail "ONNX Runtime is not in use"
  systemctl stop "$unit.socket" "$unit.service" || fail "no stop with an ONNX model"
fi
if journalctl --no-pager -u "$unit" | grep -E ' (WARN|ERROR) '; then fail "warnings in the log"; fi
echo passed
