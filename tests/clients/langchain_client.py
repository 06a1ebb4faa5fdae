"""LangChain's chat and completion models: whole, streamed, in batches, with log probabilities.   langchain_client.py URL"""
import asyncio
import sys

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI


def main():
    options = {"base_url": sys.argv[1] + "/v1", "api_key": "none", "model": "smol", "max_retries": 0, "temperature": 0}
    chat = ChatOpenAI(max_tokens=16, **options)
    whole = chat.invoke([("system", "Be brief."), ("human", "Say hello.")])
    print(whole)
    assert whole.content and whole.usage_metadata["output_tokens"] <= 16
    assert whole.response_metadata["finish_reason"] in ("stop", "length")
    pieces = list(chat.stream([("system", "Be brief."), ("human", "Say hello.")], stream_usage=True))
    assert "".join(piece.content for piece in pieces) == whole.content
    assert sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces) == \
        whole.usage_metadata["output_tokens"]
    assert [reply.content for reply in chat.batch(["Hi", "Hi"])] == [chat.invoke("Hi").content] * 2
    assert asyncio.run(chat.ainvoke("Hi")).content == chat.invoke("Hi").content
    scored = chat.bind(logprobs=True, top_logprobs=2).invoke("Hi").response_metadata["logprobs"]["content"]
    assert scored and all(len(token["top_logprobs"]) == 2 for token in scored)
    two = chat.generate([[HumanMessage("Hi")]], n=2, temperature=1.0)
    assert len(two.generations[0]) == 2
    plain = OpenAI(max_tokens=8, **options)
    text = plain.invoke("Once upon a time")
    assert text and "".join(plain.stream("Once upon a time")) == text
    assert plain.invoke("Once upon a time", stop=[text[2:5]]) == text[:text.index(text[2:5])]


if __name__ == "__main__":
    main()
