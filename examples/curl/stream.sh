curl -N http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' -d '{
  "model": "default", "stream": true, "stream_options": {"include_usage": true},
  "messages": [{"role": "user", "content": "Count to five."}]
}'
