from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="any")
answer = client.chat.completions.create(
    model="default", messages=[{"role": "user", "content": "Say hello."}]
)
print(answer.choices[0].message.content)
vector = client.embeddings.create(model="default", input="Say hello.").data[0].embedding
print(len(vector))
