"""A server on loopback with the completions of vLLM 0.33.0 for prompts of embeddings, run by transformers and PEFT.

It serves what `pave export vllm` wrote, and knows nothing of PAVE. A request must fit vLLM's published schema, and have
no field beyond it: vLLM ignores those. Prompts are decoded as vLLM does it (vllm/renderers/embed_utils.py).
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import torch
from peft import PeftModel
from places import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

# CompletionRequest.model_json_schema() of vllm/entrypoints/openai/completion/protocol.py, without its descriptions.
SCHEMA = json.loads((ROOT / "tests/golden/vllm_completion_request.json").read_text())


class Decoder:
    """An exported folder, opened as anybody would."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder / "decoder")
        self.plain: Any = AutoModelForCausalLM.from_pretrained(folder / "decoder").eval()
        self.model, self.loras = self.plain, [path.name for path in sorted(folder.glob("loras/*"))]
        for place, name in enumerate(self.loras):
            path = str(folder / "loras" / name)
            if place:
                self.model.load_adapter(path, adapter_name=name)
            else:
                self.model = PeftModel.from_pretrained(self.plain, path, adapter_name=name).eval()

    def running(self, name: str) -> Any:
        """Within the block the model is the decoder with this LoRA, or alone."""
        if name in self.loras:
            self.model.set_adapter(name)
        return nullcontext() if name in self.loras or not self.loras else self.model.disable_adapter()

    @torch.no_grad()
    def logits(self, embeddings: torch.Tensor, name: str) -> torch.Tensor:
        with self.running(name):
            return self.model(inputs_embeds=embeddings[None]).logits[0]

    @torch.no_grad()
    def generate(self, embeddings: torch.Tensor, name: str, stops: list[int], most: int) -> list[int]:
        options = {"max_new_tokens": most, "do_sample": False, "eos_token_id": stops}
        with self.running(name):
            return self.plain.generate(inputs_embeds=embeddings[None], **options)[0].tolist()


class Vllm(ThreadingHTTPServer):
    """Answers with a decoder, and keeps what it was asked. `trouble`: what it does instead."""

    daemon_threads = True

    def __init__(self, decoder: Decoder, base: str, key: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.decoder, self.base, self.key = decoder, base, key
        self.asked: list[dict[str, Any]] = []
        self.trouble = ""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Vllm
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.refuse(401, "Unauthorized")
        if self.path != "/v1/completions" or body["model"] not in (self.server.base, *self.server.decoder.loras):
            return self.refuse(404, f"The model `{body['model']}` does not exist.")
        if self.server.trouble == "full":
            return self.refuse(400, "The prompt is longer than the maximum model length of 8.")
        jsonschema.validate(body, SCHEMA)
        assert body.keys() <= SCHEMA["properties"].keys()
        embeddings = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
        width = self.server.decoder.plain.config.hidden_size
        assert embeddings.dim() == 2 and embeddings.shape[1] == width and embeddings.is_floating_point()
        assert embeddings.untyped_storage().nbytes() == embeddings.nbytes
        assert body["temperature"] == 0 and body["prompt"] is None and body["stream"]
        with self.server.lock:
            ids = self.server.decoder.generate(embeddings, body["model"], body["stop_token_ids"], body["max_tokens"])
        self.stream(ids, body, len(embeddings))

    def stream(self, ids: list[int], body: dict[str, Any], prompt: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        decode, text = self.server.decoder.tokenizer.decode, ""
        ended = ids[-1] in body["stop_token_ids"]
        for count in range(1, len(ids) + 1):
            if self.server.trouble and count == len(ids):
                self.close_connection = True
                if self.server.trouble == "broken":
                    self.say({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}})
                if self.server.trouble != "cut":
                    self.write(b"")
                return
            before, reason = text, ("stop" if ended else "length") if count == len(ids) else None
            if (
                not (now := decode(ids[:count], skip_special_tokens=True)).endswith("\N{REPLACEMENT CHARACTER}")
                or reason
            ):
                text = now  # vLLM holds back half a character, too
            choice = {"index": 0, "text": text[len(before) :], "logprobs": None, "finish_reason": reason}
            choice["stop_reason"] = ids[-1] if reason == "stop" else None
            self.say({"choices": [choice]}, body)
        usage = {"prompt_tokens": prompt, "completion_tokens": len(ids), "total_tokens": prompt + len(ids)}
        self.say({"choices": [], "usage": usage}, body)
        self.write(b"data: [DONE]\n\n")
        self.write(b"")

    def say(self, event: dict[str, Any], body: dict[str, Any] | None = None) -> None:
        facts = {} if body is None else {"id": "cmpl-1", "object": "text_completion", "created": 1}
        self.write(b"data: " + json.dumps({**facts, **event}).encode() + b"\n\n")

    def write(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def refuse(self, status: int, message: str) -> None:
        data = json.dumps({"error": {"message": message, "type": "Error", "param": None, "code": status}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(folder: Path, base: str, key: str = "") -> Iterator[Vllm]:
    """A server of an exported folder for the block."""
    with Vllm(Decoder(folder), base, key) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
