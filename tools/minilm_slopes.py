"""Screen settings on MiniLM: one gradient a step in the place of the passes of its probes.

    python tools/minilm_slopes.py --rank 4 --directions 2 --forwards 752
    python tools/minilm_slopes.py --batch 64 --forwards 752

The differences of the probes are replaced by exact slopes, the products of the batch's gradient
with the probes: what is lost to the noise of batches and to the number of unknowns stays as it is,
the error of finite differences is left out, and so are line searches. The learning rate falls
linearly to zero. What is good here has still to be run by docs/examples/finetune_minilm.py.
"""

import argparse
import functools
import importlib.util
import time
from pathlib import Path

import torch

TEXTS_OF_FRAMES = 64


@functools.cache
def load_example():
    """Return the example as a module: its task, its model and its texts."""
    path = Path(__file__).resolve().parents[1] / "docs" / "examples" / "finetune_minilm.py"
    spec = importlib.util.spec_from_file_location("finetune_minilm", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frames(model, weights, batch, rank, sketch, generator):
    """Return a frame (n, r) on the side of the inputs for each weight (m, n)."""
    if sketch == "random":
        return {
            name: torch.linalg.qr(torch.randn(p.shape[1], rank, generator=generator))[0]
            for name, p in weights
        }
    modules, found, hooks = dict(model.encoder.named_modules()), {}, []
    for name, _ in weights:

        def keep(module, inputs, output, name=name):
            x = inputs[0].detach().flatten(0, -2)
            found[name] = torch.linalg.eigh(x.T @ x)[1][:, -rank:].flip(1)

        hooks.append(modules[name.removesuffix(".weight")].register_forward_hook(keep))
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return found


def direction(momentum, count):
    """Return U V^T of the leading singular vectors of a momentum (m, r)."""
    u, _, vh = torch.linalg.svd(momentum, full_matrices=False)
    return u[:, :count] @ vh[:count]


def run(example, model, data, held_out, options):
    """Train with exact slopes; return (loss, accuracy) before and at each third."""
    weights = [(n, p) for n, p in example.hidden_matrices(model) if "pooler" not in n]
    generator = torch.Generator().manual_seed(options.seed)

    def batch(size):
        return data.batch(torch.randint(len(data.labels), (size,), generator=generator))

    frame = frames(model, weights, batch(TEXTS_OF_FRAMES), options.rank, options.sketch, generator)
    steps, momenta = options.forwards // options.probes, {}
    found = [example.measure(model, held_out)]
    for t in range(steps):
        loss = model.loss(batch(options.batch))
        gradients = torch.autograd.grad(loss, [p for _, p in weights])
        with torch.no_grad():
            slopes = [g @ frame[name] for (name, _), g in zip(weights, gradients, strict=True)]
            probes = [torch.randn(options.probes, *s.shape, generator=generator) for s in slopes]
            c = sum((b * s).sum(dim=(1, 2)) for b, s in zip(probes, slopes, strict=True))
            c = (c - c.mean()) / (options.probes - 1)  # leave-one-out
            rate = options.lr * (1 - t / steps)
            for (name, p), b in zip(weights, probes, strict=True):
                estimate = torch.einsum("i,imr->mr", c, b)
                old = momenta.get(name, estimate)
                m = momenta[name] = options.momentum * old + (1 - options.momentum) * estimate
                o = m if options.scaling == "joint" else direction(m, options.directions)
                p.addmm_(o, frame[name].T, alpha=-rate)
        if t + 1 in (steps // 3, 2 * steps // 3, steps):
            found.append(example.measure(model, held_out))
    return found


def main(arguments=None, load=None):
    """Run one setting and print what it reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sketch", choices=["activation", "random"], default="activation")
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--directions", type=int, default=1, help="k, singular vectors of a step")
    parser.add_argument(
        "--scaling", choices=["layer", "joint"], default="layer",
        help="directions of each matrix, or the plain momentum of all",
    )  # fmt: skip
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--forwards", type=int, default=752, help="probes, each one forward pass")
    parser.add_argument("--seed", type=int, default=0)
    example = load_example()
    example.add_task(parser)
    options = parser.parse_args(arguments)
    encoder, tokenizer = (load or example.load_encoder)()
    model, data, held_out, _ = example.prepare(encoder, tokenizer, options)
    begin = time.perf_counter()
    found = run(example, model, data, held_out, options)
    curve = "  ".join(f"{loss:.4f} / {hits:.3f}" for loss, hits in found)
    print(f"{vars(options)}\n  loss / accuracy: {curve}, {time.perf_counter() - begin:.0f} s")
    return found


if __name__ == "__main__":
    main()
