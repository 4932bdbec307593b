import OpenAI from "openai";

const client = new OpenAI({ baseURL: "http://127.0.0.1:8080/v1", apiKey: "any" });
const stream = await client.chat.completions.create({
  model: "default", messages: [{ role: "user", content: "Say hello." }], stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
