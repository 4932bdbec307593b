curl http://127.0.0.1:8080/v1/rerank -H 'content-type: application/json' -d '{
  "query": "What is the capital of France?",
  "documents": ["Berlin is in Germany.", "Paris is the capital."], "top_n": 1
}'
