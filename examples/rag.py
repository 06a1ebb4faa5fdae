#!/usr/bin/env python3
"""Answers questions from a folder of Markdown or text files: finds passages by BM25, gives them to a model of a running server.

    rag.py FOLDER [--question TEXT] [--url URL] [--model NAME] [--passages N]

Without --question it asks for questions until Ctrl-D. Needs the package langchain-openai, and no embedding model: passages
are ranked by the words that they share with the question (Robertson and Zaragoza 2009, The Probabilistic Relevance
Framework). An instruction-tuned model of some billion parameters answers well; the default model shows how it works.
"""
import argparse
import collections
import math
import pathlib
import re
import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

PROMPT = ChatPromptTemplate.from_messages([
    ("system", "Answer from the passages alone, in a few sentences, and name the file. If they do not say it, say so."),
    ("human", "{passages}\n\nQuestion: {question}"),
])
WORDS = 120  # of a passage, about


def words(text):
    return re.findall(r"\w+", text.lower())


class Bm25:
    """Ranks passages, each (file name, text)."""

    def __init__(self, passages, k1=1.5, b=0.75):
        self.passages = passages
        self.counts = [collections.Counter(words(text)) for _, text in passages]
        self.lengths = [sum(count.values()) for count in self.counts]
        self.mean = sum(self.lengths) / max(1, len(self.lengths))
        self.found_in = collections.Counter(word for count in self.counts for word in count)
        self.k1, self.b = k1, b

    def weight(self, word):
        found = self.found_in[word]
        return math.log(1 + (len(self.passages) - found + 0.5) / (found + 0.5))

    def score(self, i, question):
        norm = self.k1 * (1 - self.b + self.b * self.lengths[i] / self.mean)
        return sum(self.weight(w) * self.counts[i][w] * (self.k1 + 1) / (self.counts[i][w] + norm) for w in set(question))

    def best(self, question, n):
        """The n passages that fit best, those without any common word left out."""
        asked = words(question)
        scored = sorted(((self.score(i, asked), i) for i in range(len(self.passages))), key=lambda s: (-s[0], s[1]))
        return [self.passages[i] for score, i in scored[:n] if score > 0]


def read_passages(folder):
    """Paragraphs, joined to about WORDS words."""
    passages = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".md", ".txt")):
        piece = ""
        for paragraph in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            piece += paragraph + "\n\n"
            if len(piece.split()) >= WORDS:
                passages.append((str(path.relative_to(folder)), piece.strip()))
                piece = ""
        if piece.strip():
            passages.append((str(path.relative_to(folder)), piece.strip()))
    return passages


def answer(chain, index, question, n):
    found = index.best(question, n)
    print("from:", ", ".join(dict.fromkeys(name for name, _ in found)) or "no passage fits", file=sys.stderr)
    passages = "\n\n".join(f"[{name}]\n{text}" for name, text in found)
    for piece in chain.stream({"passages": passages, "question": question}):
        print(piece, end="", flush=True)
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--question", help="ask this and end")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as /v1/models names it [%(default)s]")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--passages", type=int, default=3, help="given to the model with each question [%(default)s]")
    parser.add_argument("--max-tokens", type=int, default=200, help="of an answer [%(default)s]")
    options = parser.parse_args()
    passages = read_passages(options.folder)
    if not passages:
        sys.exit(f"{options.folder}: no .md or .txt file with text in it")
    index = Bm25(passages)
    model = ChatOpenAI(base_url=options.url, api_key=options.api_key, model=options.model, temperature=0,
                       max_tokens=options.max_tokens)
    chain = PROMPT | model | StrOutputParser()
    if options.question:
        return answer(chain, index, options.question, options.passages)
    while True:
        try:
            question = input("question> ").strip()
        except EOFError:
            return None
        if question:
            answer(chain, index, question, options.passages)


if __name__ == "__main__":
    main()
