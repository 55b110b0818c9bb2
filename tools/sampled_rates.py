"""Compare the tuned learning rate with rates by hand where each step sees another sample of data.

    python tools/sampled_rates.py --budget 3000
    python tools/sampled_rates.py --budget 12000 --problems squares-8 network-64 --seeds 4

Prints what is left of the loss over all data, as a part of what there was at the start, where the
least loss is known above it: its mean over the seeds, tuned and with the best rates of a grid,
constant and falling to zero. Runs by hand have the tuned ones' probes and momentum, and the seeds
0 and 1 alone.
"""

import argparse

import numpy as np

import zomopi_core as zo
from zomopi_core import problems

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


def network(batch):
    """Return the loss of a network of 16 hidden units on digits, its start, sizes and least."""
    problem = problems.digits(hidden=16)
    images, labels = problem.train_images, problem.train_labels

    def loss(params, rows=slice(None)):
        return float(problem._loss_on(params, images[rows], labels[rows]))

    return loss, problem.x0, len(images), batch, 0.0


def squares(batch, condition, noise):
    """Return the same of least squares with 384 unknowns."""
    random = np.random.default_rng(5)
    scales = np.geomspace(1.0, condition, 24)
    rows = random.standard_normal((2000, 24)) * scales**-0.5
    target = 0.3 * np.outer(random.standard_normal(24), random.standard_normal(16))
    values = rows @ (target * scales[:, None] ** 0.25)
    values += noise * random.standard_normal(values.shape)

    def loss(x, chosen=slice(None)):
        return float(np.mean((rows[chosen] @ x - values[chosen]) ** 2))

    return loss, np.zeros((24, 16)), len(rows), batch, loss(np.linalg.lstsq(rows, values)[0])


PROBLEMS = {
    "network-16": lambda: network(16),
    "network-64": lambda: network(64),
    "squares-8": lambda: squares(8, 1.0, 3.0),
    "squares-64": lambda: squares(64, 1.0, 3.0),
    "uneven-8": lambda: squares(8, 1e3, 1.0),  # curvatures of 1 to 1,000
    "uneven-64": lambda: squares(64, 1e3, 1.0),
}


def left(name, budget, seed, method):
    """Return what a run leaves of the loss."""
    loss, start, count, batch, least = PROBLEMS[name]()
    random = np.random.default_rng([seed, 77])
    optimizer, spent = zo.Optimizer(start, method=method, seed=seed), 0
    while spent + optimizer.queries <= budget:
        rows = random.integers(0, count, batch)
        points = optimizer.ask()
        optimizer.tell([loss(x, rows) for x in points])
        spent += len(points)
    return (loss(optimizer.x) - least) / (loss(start) - least)


def by_hand(name, rate):
    """Return the method of a tuned run with a rate that is given."""
    tuned = zo.Optimizer(PROBLEMS[name]()[1], method=zo.zo_mopi(learning_rate="auto")).method
    return zo.zo_mopi(
        learning_rate=rate,
        probes=8,
        difference="leave-one-out",
        momentum=tuned.matrices.momentum.beta,
        smoothing=1e-3,
    )


def main():
    """Print a line for each problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--budget", type=int, default=3000, help="evaluations of a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tuned", action="store_true", help="no runs by hand")
    options = parser.parse_args()
    for name in options.problems:
        budget, steps = options.budget, options.budget // 8
        tuned = zo.zo_mopi(learning_rate="auto")
        found = [left(name, budget, seed, tuned) for seed in range(options.seeds)]
        line = (
            f"{name} {budget}: tuned {np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})"
        )
        for kind in () if options.tuned else ("constant", "falling"):
            means = {}
            for rate in RATES:
                schedule = rate if kind == "constant" else zo.linear_decay(rate, steps)
                method = by_hand(name, schedule)
                means[rate] = np.mean([left(name, budget, seed, method) for seed in (0, 1)])
            best = min(means, key=means.get)
            line += f", {kind} {best:g} {means[best]:.3f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
