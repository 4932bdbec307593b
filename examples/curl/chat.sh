curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' -d '{
  "model": "default",
  "messages": [{"role": "user", "content": "What is the capital of France?"}]
}'
