"""How fits and networks scale: voxels, threads, measurements, parameters, stages, machine limits.

    python benchmarks/scaling.py        # some minutes on 2 cores

Rician noise, SNR 30, signals of the typical ranges; networks are blends of two with random weights
and give standard errors. Compiled programs are warm; the best of several runs. Peak memory is that
of the whole process, JAX and the data included.

The limits are those of one core: multiply-adds of a product of matrices of 1024 x 1024, and
exponentials of an array that fits the cache, both by XLA. The time at the limit is the number of
operations that XLA counts in a compiled program, over these rates.
"""

import json
import os
import resource
import subprocess
import sys
import time
from functools import partial

VOXELS = (10_000, 100_000, 1_000_000, 10_000_000)
SIGMA = 1 / 30


def models():
    """Label, model, and groups of measurements for its network."""
    import numpy as np

    import labelwise as lw
    from labelwise.models.ivim_kurtosis import IVIMKurtosis
    from labelwise.models.ivim_triexponential import IVIMTriexponential

    def b(count):
        return np.concatenate([[0], np.geomspace(0.005, 2.0, count - 1)])

    for model in (
        lw.ADC([0, 0.1, 0.4, 0.8]),
        lw.ADC(b(30)),
        lw.Kurtosis(b(30)),
        *(lw.IVIM(b(count)) for count in (10, 30, 54, 100, 300)),
        IVIMKurtosis(b(30)),
        IVIMTriexponential(b(30)),
    ):
        yield model, [(i,) for i in range(len(model.b))]


def simulated(model, voxels):
    import jax

    import labelwise as lw

    prior = lw.Uniform.typical(model)
    return lw.simulate(model, lw.Rician(), prior, SIGMA, voxels, jax.random.key(0)).signal


def best(function, times=3):
    """CPU and clock seconds."""
    function()
    found = []
    for _ in range(times):
        cpu, clock = time.process_time(), time.perf_counter()
        function()
        found.append((time.process_time() - cpu, time.perf_counter() - clock))
    return [min(column) for column in zip(*found, strict=True)]


def by_voxels(threads, method):
    """Per number of voxels: voxels per second, and peak memory in MiB of a process so far."""
    import labelwise as lw
    from networks import network

    ivim = next(model for model, groups in models() if isinstance(model, lw.IVIM))
    estimate = (
        lw.MaximumLikelihood(ivim, lw.Rician(), threads=threads)
        if method == "fit"
        else network(ivim, [(i,) for i in range(10)])
    )
    for voxels in VOXELS:
        signal = simulated(ivim, voxels)
        estimate(signal[:20_000], SIGMA)
        begin = time.perf_counter()
        estimate(signal, SIGMA)
        clock = time.perf_counter() - begin
        yield voxels / clock, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def by_model():
    """Per model: its name, P, M, and µs of CPU time per voxel of a fit and of a network."""
    import labelwise as lw
    from networks import network

    for model, groups in models():
        signal = simulated(model, 8192)
        fits, net = lw.MaximumLikelihood(model, lw.Rician(), threads=1), network(model, groups)
        each = [best(partial(run, signal, SIGMA))[0] / 8192e-6 for run in (fits, net)]
        yield type(model).__name__, len(model.parameters), len(groups), *each


def peaks():
    """Multiply-adds and exponentials per second of one core."""
    import jax
    import jax.numpy as jnp

    matrix, row = jnp.ones((1024, 1024)) / 1024, jnp.linspace(-2, 0, 16_384)

    @jax.jit
    def many(row):  # additions that keep exponentials from being left out
        return jax.lax.fori_loop(0, 100, lambda _, x: jnp.exp(x) - 1.5, row)

    product = jax.jit(lambda a: a @ a)
    return (
        1024**3 / best(lambda: jax.block_until_ready(product(matrix)), 10)[0],
        100 * len(row) / best(lambda: jax.block_until_ready(many(row)), 10)[0],
    )


def operations(function, *arguments):
    """Multiply-adds and transcendental functions in a compiled program."""
    import jax

    program = function if hasattr(function, "lower") else jax.jit(function)
    cost = program.lower(*arguments).compile().cost_analysis()
    return cost["flops"] / 2, cost.get("transcendentals", 0.0)


def by_stage():
    """Per stage of a fit and of a network: µs of CPU time per voxel, calls, and the limit."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import labelwise as lw
    from labelwise.fitting import engines, newton, starts
    from labelwise.fitting.batching import WIDTH
    from labelwise.networks import inference
    from networks import network

    ivim = next(model for model, groups in models() if isinstance(model, lw.IVIM))
    voxels, noise, size = 65_536, lw.Rician(), len(ivim.parameters)
    signal = simulated(ivim, voxels)
    fit = lw.MaximumLikelihood(ivim, noise, threads=1)
    spent, steps = {}, []

    def timed(owner, name):
        original = getattr(owner, name)

        def call(*arguments):
            begin = time.process_time()
            found = original(*arguments)
            spent[name] = spent.get(name, 0.0) + time.process_time() - begin
            if name == "newton":
                steps.append(found[3].sum())
            return found

        setattr(owner, name, call)
        return original

    fit(signal, SIGMA)
    stages = [(starts.Dictionary, "starts"), (engines.Compiled, "newton")]
    stages.append((engines.Compiled, "describe"))
    originals = [timed(*stage) for stage in stages]
    begin = time.process_time()
    fit(signal, SIGMA)
    whole = time.process_time() - begin
    for (owner, name), original in zip(stages, originals, strict=True):
        setattr(owner, name, original)
    rows = jnp.ones((size, WIDTH))
    problem = newton.Problem(jnp.ones((10, WIDTH)), jnp.ones((1, WIDTH)), 0 * rows, 2 * rows)
    chosen = jnp.zeros((size, WIDTH), bool)

    def one(q, problem):
        state = newton.begin(tuple(q), jnp.ones(WIDTH))
        found = newton.evaluate(fit._engine.expand, noise, state.trial, problem)
        return newton.step(state, found, problem, fit._stop)

    def describe(q, problem):
        along = newton.slopes(fit._engine.signal, tuple(q))
        signal = fit._engine.signal(*q)
        return engines.uncertainty(noise, signal, along, problem, ~chosen, chosen)

    book = fit._dictionary
    tables = [jnp.asarray(each) for each in (book.terms, book.gram, book.spacing)]

    def search(data, sigma):
        return starts._entries(book.shape, book.scale, noise, tables, data, sigma)

    newton.TOGETHER = 10  # all at once: XLA counts the operations of a loop once

    iterations = sum(steps) / voxels
    counts = {
        "starts": (1.0, operations(search, problem.data, problem.sigma)),
        "newton": (iterations, operations(one, rows, problem)),
        "describe": (1.0, operations(describe, rows, problem)),
    }
    for name, (calls, counted) in counts.items():
        yield f"fit: {name}", spent[name] / voxels, calls, [x / WIDTH for x in counted]
    yield "fit: rest", (whole - sum(spent.values())) / voxels, 1.0, (0.0, 0.0)
    net = network(ivim, [(i,) for i in range(10)])
    data, level = jnp.asarray(np.array(signal[:2048]).T), jnp.full(2048, SIGMA)
    parts = [(m.architecture, m.scaling, m.weights, share) for m, share in net._used]
    given = (tuple(p[2] for p in parts), ()), tuple(p[3] for p in parts), data, level
    for words, errors in (("estimates", False), ("with errors", True)):
        program = inference._program(tuple(p[:2] for p in parts), (), noise, errors)
        seconds = best(lambda p=program: jax.block_until_ready(p(*given)), 20)[0]
        counted = operations(program, *given)
        yield f"network: {words}", seconds / 2048, 1.0, [x / 2048 for x in counted]


def child(threads, task, *arguments):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    from labelwise.fitting.compiler import use_fused_kernels

    use_fused_kernels()
    sys.path.insert(0, os.path.dirname(__file__))
    if task == "voxels":
        print(json.dumps(list(by_voxels(int(threads), *arguments))))
    elif task == "models":
        print(json.dumps(list(by_model())))
    else:
        print(json.dumps([peaks(), list(by_stage())]))


def run(*arguments):
    """The result of a task in a process of its own."""
    call = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.check_output(call, text=True).splitlines()[-1])


def main():
    print("IVIM, 10 b-values: voxels per second (peak memory of the process)")
    print(f"{'':>10}" + "".join(f"{f'{m}, {t} thread(s)':>28}" for m in METHODS for t in (1, 2)))
    columns = [run(threads, "voxels", method) for method in METHODS for threads in (1, 2)]
    for voxels, *cells in zip(VOXELS, *columns, strict=True):
        texts = [f"{speed:,.0f} ({memory:,.0f} MiB)" for speed, memory in cells]
        print(f"{voxels:>10,}" + "".join(f"{text:>28}" for text in texts), flush=True)
    print("\nµs of CPU time per voxel, one thread, 8,192 voxels")
    print(f"{'model':<22}{'P':>4}{'M':>6}{'fit':>10}{'network':>10}")
    for name, size, count, fit, net in run(1, "models"):
        print(f"{name:<22}{size:>4}{count:>6}{fit:>10.2f}{net:>10.2f}")
    (adds, exps), stages = run(1, "stages")
    print(f"\none core: {adds / 1e9:.0f} G multiply-adds/s, {exps / 1e9:.2f} G exponentials/s")
    print("IVIM, 10 b-values, one thread; per voxel")
    columns = (("µs", 8), ("times", 8), ("mult-adds", 11), ("exp etc.", 10), ("limit µs", 10))
    print(f"{'stage':<22}" + "".join(f"{name:>{width}}" for name, width in columns) + "  ratio")
    for name, seconds, times, (products, functions) in stages:
        limit = times * (products / adds + functions / exps)
        ratio = f"{seconds / limit:.1f}" if limit else ""
        text = f"{name:<22}{seconds * 1e6:>8.3f}{times:>8.2f}{times * products:>11,.0f}"
        print(f"{text}{times * functions:>10,.0f}{limit * 1e6:>10.3f}{ratio:>7}")


METHODS = ("fit", "network")

if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
