"""Run by the Python of an environment with torch and transformers: what the library makes of some
folders. Reads lines of JSON, {folder, inputs (a .npy file)}; answers with the file of the logits.

    python transformers_worker.py < requests
"""

import json
import sys

import numpy as np
import torch
import transformers

AUTO = {"GPT2LMHeadModel": "AutoModelForCausalLM", "LlamaForCausalLM": "AutoModelForCausalLM",
        "BertForTokenClassification": "AutoModelForTokenClassification",
        "ViTForImageClassification": "AutoModelForImageClassification"}  # fmt: skip


def logits(folder, inputs):
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, AUTO[config.architectures[0]])
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[what], (folder, what, info[what])
    given = torch.tensor(inputs)
    name = "pixel_values" if given.is_floating_point() else "input_ids"
    with torch.no_grad():
        return model.eval()(**{name: given}).logits.numpy()


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        request = json.loads(line)
        out = request["inputs"].replace(".npy", "-logits.npy")
        np.save(out, logits(request["folder"], np.load(request["inputs"])))
        print(out, flush=True)
