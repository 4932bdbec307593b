"""Measure one peer on one GGUF file and print one JSON object with tokens per second.

    python3 measure.py llama.cpp model.gguf --prompt 512 --tokens 64 --streams 8,32 --threads 2

`compare.py` runs this in an environment that has the peers.
"""

import argparse
import json
import os
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("peer", choices=["llama.cpp", "openvino", "mistral.rs"])
parser.add_argument("model")
parser.add_argument("--prompt", type=int, required=True, help="prompt tokens")
parser.add_argument("--tokens", type=int, required=True, help="tokens that each sequence generates")
parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",") if n], default=[])
parser.add_argument("--depth", type=int, default=128, help="tokens in the KV cache when several sequences decode")
parser.add_argument("--threads", type=int, default=os.cpu_count())
args = parser.parse_args()

# Any tokens will do; these ids are in every vocabulary.
PROMPT = [100 + i * 37 % 900 for i in range(max(args.prompt, args.depth))]


class LlamaCpp:
    """The C interface that llama-cpp-python wraps: no logits are copied into Python."""

    def __init__(self):
        import llama_cpp

        self.lib = llama_cpp
        self.silence = llama_cpp.llama_log_callback(lambda *_: None)  # Called for as long as this object lives.
        llama_cpp.llama_log_set(self.silence, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(args.model.encode(), params)
        n_sequences = max([1, *args.streams])
        params = llama_cpp.llama_context_default_params()
        of_streams = n_sequences * (args.depth + args.tokens + 1)
        params.n_ctx = max(args.prompt + args.tokens + 1, of_streams) + 256
        params.n_seq_max = n_sequences
        params.kv_unified = True
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = args.threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.greedy = llama_cpp.llama_sampler_init_greedy()
        self.batch = llama_cpp.llama_batch_init(max(512, n_sequences), 0, 1)

    def forward(self, rows):
        """Computes rows of (token, position, sequence, whether logits are needed)."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wanted
        assert self.lib.llama_decode(self.context, self.batch) == 0

    def fill(self, sequence, n_tokens):
        for start in range(0, n_tokens, 512):
            end = min(start + 512, n_tokens)
            self.forward([(PROMPT[i], i, sequence, i + 1 == n_tokens) for i in range(start, end)])
        return self.sample(-1)

    def sample(self, row):
        return self.lib.llama_sampler_sample(self.greedy, self.context, row)

    def run(self, n_sequences, depth):
        """Returns the seconds of the prefill and of the decode."""
        self.lib.llama_memory_clear(self.memory, True)
        start = time.perf_counter()
        tokens = [self.fill(sequence, depth) for sequence in range(n_sequences)]
        prefilled = time.perf_counter()
        for step in range(args.tokens):
            self.forward([(token, depth + step, i, True) for i, token in enumerate(tokens)])
            tokens = [self.sample(i) for i in range(n_sequences)]
        return prefilled - start, time.perf_counter() - prefilled

    def measure(self):
        self.run(1, args.prompt)
        prefill, decode = self.run(1, args.prompt)
        figures = {"prefill": args.prompt / prefill, "decode": args.tokens / decode}
        for n in args.streams:
            figures[f"decode, {n} streams"] = n * args.tokens / self.run(n, args.depth)[1]
        return figures


class OpenVino:
    def measure(self):
        import numpy
        import openvino
        import openvino_genai

        pipeline = openvino_genai.LLMPipeline(args.model, "CPU", INFERENCE_NUM_THREADS=args.threads)
        config = openvino_genai.GenerationConfig(
            max_new_tokens=args.tokens + 1, ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        for first in (1, 2):  # The first warms up; the second starts with another token, so that it misses the prefix cache.
            ids = numpy.array([[first, *PROMPT[1 : args.prompt]]], dtype=numpy.int64)
            inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
            metrics = pipeline.generate(inputs, config).perf_metrics
        return {
            "prefill": args.prompt / (metrics.get_ttft().mean / 1e3),
            "decode": 1e3 / metrics.get_tpot().mean,
        }


class MistralRs:
    def measure(self):
        os.environ["RAYON_NUM_THREADS"] = str(args.threads)
        import mistralrs

        folder, file = os.path.split(os.path.abspath(args.model))
        which = mistralrs.Which.GGUF(quantized_model_id=folder, quantized_filename=file)
        runner = mistralrs.Runner(which=which, prefix_cache_n=0)
        # It accepts only text; each of these words is one token.
        words = "river stone house night money story water child".split()
        text = " ".join(words[i * i % len(words)] for i in range(args.prompt))
        request = mistralrs.CompletionRequest(
            model="default", prompt=text, max_tokens=args.tokens, temperature=0, ignore_eos=True
        )
        for _ in range(2):  # The first warms up.
            usage = runner.send_completion_request(request).usage
        return {"prefill": usage.avg_prompt_tok_per_sec, "decode": usage.avg_compl_tok_per_sec}


PEERS = {"llama.cpp": LlamaCpp, "openvino": OpenVino, "mistral.rs": MistralRs}
print(json.dumps(PEERS[args.peer]().measure()))
