from langchain_openai import ChatOpenAI, OpenAIEmbeddings

server = dict(base_url="http://127.0.0.1:8080/v1", api_key="any", model="default")
print(ChatOpenAI(**server).invoke("Say hello.").content)
# Without this flag LangChain sends token ids of another model's vocabulary.
print(len(OpenAIEmbeddings(**server, check_embedding_ctx_length=False).embed_query("Say hello.")))
