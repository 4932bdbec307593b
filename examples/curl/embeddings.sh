curl http://127.0.0.1:8080/v1/embeddings -H 'content-type: application/json' -d '{
  "model": "default", "input": ["A man is eating food.", "The girl is carrying a baby."]
}'
