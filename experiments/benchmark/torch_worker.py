"""The same encoder and training in PyTorch: a script of its own, which needs nothing of ours.

It reads commands as lines of JSON and answers each with one, so that its blocks can take turns with
those of other sides; between commands it sleeps.

    {"do": "load", "file": ...}                       what peer.py wrote: sizes, parameters, batches
    {"do": "check", "kind": "eager" | "compiled" | "layers"}   the losses of the first steps
    {"do": "steps", "kind": ..., "count": ...}        the seconds that so many steps took

"layers" compiles each layer by itself, which for deep models takes a fraction of the time: they
are alike, and compiled once. In bfloat16 parameters stay float32, and autocast rounds them.

Run as `python -I torch_worker.py THREADS`.
"""

import itertools
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
    """A pre-norm block: attention without biases, MLP with tanh-GELU."""

    def __init__(self, width, heads, epsilon):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        normed = self.attention_norm(x)
        query, key, value = (
            project(normed).view(batch, length, self.heads, -1).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        heads = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(heads.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class Encoder(nn.Module):
    """Tokens to logits."""

    def __init__(self, symbols, length, width, layers, heads, epsilon, dtype):
        super().__init__()
        self.dtype = getattr(torch, dtype)
        self.embed = nn.Embedding(symbols, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.layers = nn.ModuleList(Layer(width, heads, epsilon) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.readout = nn.Linear(width, symbols)

    def forward(self, tokens):
        x = (self.embed(tokens) + self.positions).to(self.dtype)
        for layer in self.layers:
            x = layer(x)
        return self.readout(self.norm(x))


class Training:
    """One run: model, optimiser, and how many steps it has behind it."""

    def __init__(self, setup, params, kind):
        self.setup = setup
        self.model = Encoder(**setup["model"]).to(setup["device"])
        copy_into(self.model, params)
        named = list(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [value for name, value in named if is_kernel(name)],
                    "weight_decay": setup["weight_decay"],
                },
                {
                    "params": [value for name, value in named if not is_kernel(name)],
                    "weight_decay": 0.0,
                },
            ],
            betas=setup["betas"],
            eps=setup["eps"],
            fused=True,
        )
        self.loss = self.mean_loss
        if kind == "compiled":
            self.loss = torch.compile(self.mean_loss, dynamic=False)
        elif kind == "layers":
            for layer in self.model.layers:
                layer.compile(dynamic=False)
        self.done = 0

    def mean_loss(self, inputs, targets):
        half = self.model.dtype != torch.float32
        with torch.autocast(self.setup["device"], self.model.dtype, enabled=half):
            logits = self.model(inputs)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def step(self, inputs, targets):
        rates = self.setup["rates"]
        for group in self.optimizer.param_groups:
            group["lr"] = rates[min(self.done, len(rates) - 1)]
        self.done += 1
        loss = self.loss(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.setup["clip_norm"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def is_kernel(name):
    """Whether a parameter decays: the matrices of linear layers do."""
    return name.endswith("weight") and "norm" not in name and "embed" not in name


def copy_into(model, params):
    """The parameters of the file; linear layers keep their matrix turned round."""
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in params.items():
            values = torch.from_numpy(np.ascontiguousarray(array))
            # Heads are cut out of one axis there: [D, heads, H] or [heads, H, D].
            target = ours.pop(name)
            target.copy_(values.reshape(target.shape[::-1]).T if is_kernel(name) else values)
    if ours:
        raise ValueError(f"no values for {sorted(ours)}")


class Worker:
    """What is loaded, and a run of either kind once it is asked for."""

    def load(self, file):
        torch.compiler.reset()
        with np.load(file) as stored:
            arrays = dict(stored)
        self.setup = json.loads(str(arrays.pop("setup")))
        inputs, targets = (
            torch.from_numpy(arrays.pop(name).astype(np.int64)) for name in ("inputs", "targets")
        )
        if self.setup["device"] == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(f"PyTorch {torch.__version__} finds no CUDA")
        inputs, targets = (rows.to(self.setup["device"]) for rows in (inputs, targets))
        self.batches = list(zip(inputs, targets, strict=True))
        self.params, self.trainings = arrays, {}
        return {}

    def check(self, kind):
        training = Training(self.setup, self.params, kind)
        self.trainings[kind] = training, itertools.cycle(self.batches)
        batches = self.batches[: self.setup["checked"]]
        return {"losses": [float(training.step(*batch)) for batch in batches]}

    def steps(self, kind, count):
        training, batches = self.trainings[kind]
        start = time.perf_counter()
        for batch in itertools.islice(batches, count):
            training.step(*batch)
        if self.setup["device"] == "cuda":
            torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - start}


def main():
    torch.set_num_threads(int(sys.argv[1]))
    torch.set_flush_denormal(True)  # as XLA does
    worker = Worker()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(worker, asked.pop("do"))(**asked)
        except Exception as error:  # whatever it is, the others go on
            lines = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {lines[0]}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
