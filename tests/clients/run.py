#!/usr/bin/env python3
"""Runs lm-eval's local-completions, LangChain and guidellm, as they come from PyPI, against the default model.

    run.py [--record FILE] [CLIENT...]         CLIENT: lm-eval, langchain, guidellm

Environments are made in .cache/clients. Needs the tests' own environment (.venv), the program and the test data as test.sh
leaves them. With --record, the requests that the clients sent are kept, each kind once, for tests/server/test_clients.py.
"""
import argparse
import http.client
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/server"), str(ROOT / "tests/text")]
os.environ.setdefault("DEEPINFER_TEST_DATA", str(ROOT / ".cache/test-data"))

from conftest import Server  # noqa: E402
from test_tokenizer_hf import FAMILIES, read_vocabulary, reference  # noqa: E402

DATA = pathlib.Path(os.environ["DEEPINFER_TEST_DATA"])
MODEL = DATA / FAMILIES["smollm"][0]
CACHE = pathlib.Path(os.environ.get("DEEPINFER_CLIENTS_CACHE", ROOT / ".cache/clients"))


def environment(name):
    """The Python of an environment that holds tests/clients/NAME.txt."""
    wanted = pathlib.Path(__file__).with_name(name + ".txt")
    folder = CACHE / name
    python, stamp = folder / "bin/python", folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", wanted], check=True)
        stamp.write_text(wanted.read_text())
    return python


def tokenizer_folder(folder):
    """The model's tokenizer in Hugging Face's form."""
    _, pre_tokenizer, normalizer, ignore_merges = FAMILIES["smollm"]
    tokenizer = reference(read_vocabulary(MODEL), pre_tokenizer, normalizer, ignore_merges)
    from tokenizers import decoders
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
         "unk_token": "<|endoftext|>", "model_max_length": 8192}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 49152}))
    return folder


class Recorder(http.server.ThreadingHTTPServer):
    """Hands requests on and keeps what they were."""

    def __init__(self, server):
        super().__init__(("127.0.0.1", 0), Hand)
        self.target, self.seen = (server.host, server.port), []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Hand(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append({"method": self.command, "path": self.path, "body": json.loads(body) if body else None})
        connection = http.client.HTTPConnection(*self.server.target, timeout=600)
        connection.request(self.command, self.path, body or None, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.headers.get("Content-Type", "application/json"))
        self.end_headers()
        while data := reply.read1(65536):
            self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *_):
        pass


def run(python, *arguments):
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([python, *map(str, arguments)], check=True, env=env, timeout=900)


def lm_eval(url, folder):
    run(environment("requirements"), ROOT / "tests/clients/lm_eval_client.py", url, folder)


def langchain(url, folder):
    run(environment("requirements"), ROOT / "tests/clients/langchain_client.py", url)


def guidellm(url, folder):
    python = environment("guidellm")
    out = folder / "report.json"
    run(python, "-m", "guidellm", "run", "--backend", f"kind=openai_http,target={url},model=smol",
        "--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=6",
        "--tokenizer", f"kind=hf_auto,model={folder}", "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=12",
        "--output", f"kind=json,path={out}", "--disable-console-interactive")
    report = json.loads(out.read_text())
    totals = report["benchmarks"][0]["metrics"]["request_totals"]
    print("guidellm:", totals)
    assert totals["successful"] >= 6 and totals["errored"] == 0, totals


CLIENTS = {"lm-eval": lm_eval, "langchain": langchain, "guidellm": guidellm}


def kind(request):
    """Requests of one kind differ in their values alone."""
    return json.dumps([request["method"], request["path"], sorted(request["body"] or {}),
                       (request["body"] or {}).get("stream")])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=pathlib.Path)
    parser.add_argument("clients", nargs="*", metavar="CLIENT")
    asked = parser.parse_args()
    unknown = set(asked.clients) - set(CLIENTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(CLIENTS)}")
    program = os.environ.get("DEEPINFER_BIN", str(ROOT / "build/release/src/cli/deepinfer"))
    server = Server(program, MODEL, "--max-model-len", 1024, "--served-model-name", "smol")
    recorder = Recorder(server) if asked.record else None
    kept = []
    try:
        for name in asked.clients or CLIENTS:
            print("===", name, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                CLIENTS[name](recorder.url if recorder else server.url, tokenizer_folder(pathlib.Path(folder)))
            if recorder:
                kinds = {kind(request): request for request in reversed(recorder.seen)}
                kept += [{"client": name} | request for request in reversed(kinds.values())]
                recorder.seen.clear()
    finally:
        code = server.stop()
    assert code == 0, code
    if recorder:
        asked.record.write_text("[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in kept) + "\n]\n")


if __name__ == "__main__":
    main()
