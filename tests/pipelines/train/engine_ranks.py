"""One process of test_engine.py: `python engine_ranks.py RANK WORLD FOLDER`. Rank 0 writes what came out as safetensors."""

import math
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

ON_GPUS = {"contiguous_gradients": True, "reduce_scatter": True}
CASES = {
    "0": {"zero_stage": 0},
    "1": {"zero_stage": 1},
    "2": {"zero_stage": 2},
    "3": {"zero_stage": 3},
    "2 in small buckets": {"zero_stage": 2, "raw": {"zero_optimization": {"reduce_bucket_size": 20}}},
    **{f"{stage} as on GPUs": {"zero_stage": stage, "raw": {"zero_optimization": ON_GPUS}} for stage in (1, 2)},
    "1 offloaded": {"zero_stage": 1, "offload": "optimizer"},
    "2 offloaded": {"zero_stage": 2, "offload": "optimizer"},
    "3 offloaded": {"zero_stage": 3, "offload": "parameters"},
}
MISSPELT = {"zero_stage": 2, "raw": {"zero_optimization": {"reduce_bucket_sise": 20}}}
STAGES = ("0", "1", "2", "3")
OPTIMIZER = {
    "lr": 0.01,
    "weight_decay": 0.01,
    "layers": [{"match": "down", "lr": 0.5}, {"match": r".*bias", "weight_decay": 0.0}],
    "freeze": ["held"],
    "max_skipped": 3,
}
HALF, END, ROWS, DECAY = 6, 12, 24, 0.9


class Net(torch.nn.Module):
    """Odd sizes, so that no part is even, a buffer, frozen parameters, and one that not every pass reaches."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.up = torch.nn.Linear(5, 7)
        self.down = torch.nn.Linear(7, 3, bias=False)
        self.video = torch.nn.Linear(5, 3)
        self.held = torch.nn.Linear(3, 3)
        self.frozen = torch.nn.Parameter(torch.full((5,), 1 + 0.1 * seed), requires_grad=False)
        self.register_buffer("centre", torch.full((5,), 0.1 * seed))

    def forward(self, x, is_video):
        y = self.down(torch.tanh(self.up((x - self.centre) * self.frozen)))
        return self.held(y + self.video(x) if is_video else y)


def lr_of(step):
    return 0.01 / (1 + step)


def micro_losses(model, step, rank, world):
    """Losses of a step's micro-batches, one to three as the step has it, over this rank's share of their rows; each of two
    forward calls."""
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(ROWS, 5, generator=generator), torch.randn(ROWS, 3, generator=generator)
    passes = 1 + step % 3
    for number, (inputs, targets) in enumerate(zip(x.chunk(passes), y.chunk(passes), strict=True)):
        is_video = (step + number) % 2 == 0
        inputs, targets = inputs.chunk(world)[rank], targets.chunk(world)[rank]
        outputs = model(inputs, is_video) + model(inputs / 2, is_video)
        yield (outputs - targets).square().mean() / passes


def split_losses(model, step, rank, passes):
    """Losses of ROWS rows of each rank in so many micro-batches."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x, y = torch.randn(ROWS, 5, generator=generator), torch.randn(ROWS, 3, generator=generator)
    for inputs, targets in zip(x.chunk(passes), y.chunk(passes), strict=True):
        yield (model(inputs, True) - targets).square().mean() / passes


class Process:
    def __init__(self, rank, world, folder):
        self.rank, self.world, self.folder = rank, world, folder

    def start(self, case, seed, precision="fp32"):
        from pipelines.train.average import Average
        from pipelines.train.engine import Engine
        from pipelines.train.optimizer import DeepSpeedConfig, OptimizerConfig

        zero = DeepSpeedConfig.model_validate({**CASES, "misspelt": MISSPELT}[case])
        engine = Engine(Net(seed), OptimizerConfig.model_validate(OPTIMIZER), zero, precision)
        return engine, Average(engine, DECAY)

    def walk(self, engine, average, steps, passes=None):
        norms = []
        for step in steps:
            losses = (
                split_losses(engine, step, self.rank, passes)
                if passes
                else micro_losses(engine, step, self.rank, self.world)
            )
            for loss in losses:
                engine.backward(loss)
            update = engine.update(lr_of(step))
            average.update(step + 1)
            norms.append(update.gradient_norm)
        return torch.tensor(norms)

    def state(self, engine, average, norms=None):
        """Whole on every rank; the norms are of the steps that led here."""
        state = [{"weights": engine.weights(), "moments": engine.moments(), "average": average.gather()}]
        assert self.rank == 0 or not any(state[0].values())
        dist.broadcast_object_list(state)
        return {**state[0], "norms": {"norms": norms} if norms is not None else {}}

    def load(self, engine, average, state):
        engine.load(state["weights"], state["moments"])
        average.load(state["average"])

    def save(self, name, state):
        if self.rank == 0:
            flat = {f"{part}/{n}": values for part, whole in state.items() for n, values in whole.items()}
            save_file(flat, self.folder / f"{name}.temp")
            (self.folder / f"{name}.temp").rename(self.folder / f"{name}.safetensors")

    def wait_for(self, name):
        path = self.folder / f"{name}.safetensors"
        deadline = time.monotonic() + 100
        while not path.exists():
            assert time.monotonic() < deadline, f"{name} was not written"
            time.sleep(0.1)
        state = {"weights": {}, "moments": {}, "average": {}, "norms": {}}
        for key, values in load_file(path).items():
            part, _, name = key.partition("/")
            state[part][name] = values
        return state

    def go_on(self, case, state, steps, name=None, precision="fp32"):
        """From ``state``, under ``case``; what was loaded is saved as "loaded"."""
        engine, average = self.start(case, seed=2, precision=precision)
        self.load(engine, average, state)
        if name:
            self.save(f"loaded {name}", self.state(engine, average))
        return self.state(engine, average, self.walk(engine, average, steps))


def pair(process):
    halves = {}
    for case in CASES:
        engine, average = process.start(case, seed=1)
        norms = process.walk(engine, average, range(HALF))
        halves[case] = process.state(engine, average, norms)
        process.save(f"half {case}", halves[case])
        norms = torch.cat([norms, process.walk(engine, average, range(HALF, END))])
        process.save(f"straight {case}", process.state(engine, average, norms))
    for case in CASES:
        process.save(f"same {case}", process.go_on(case, halves[case], range(HALF, END)))
    for case in CASES:
        process.save(f"resumed {case}", process.go_on(case, halves["2"], range(HALF, END), name=case))
    third = process.go_on("3", halves["1"], range(HALF, HALF + 3))
    process.save("1 to 3 to 2", process.go_on("2", third, range(HALF + 3, END)))
    for case in CASES:
        poison(process, case)
    for stage in STAGES:
        engine, average = process.start(stage, seed=1, precision="bf16")
        process.walk(engine, average, range(HALF))
        half = process.state(engine, average)
        process.save(f"bf16 {stage}", process.state(engine, average, process.walk(engine, average, range(HALF, END))))
        process.save(f"bf16 same {stage}", process.go_on(stage, half, range(HALF, END), precision="bf16"))
    for stage in STAGES:
        for passes in (1, 4):
            engine, average = process.start(stage, seed=1)
            norms = process.walk(engine, average, range(3), passes)
            process.save(f"{passes} passes {stage}", process.state(engine, average, norms))
    process.save("two, one, two", process.go_on("3", process.wait_for("alone"), range(HALF + 3, END)))


def poison(process, case):
    """Between steps 3 and 4, steps whose loss is not finite on one rank, in one of their micro-batches; then too many."""
    from kineograph.errors import Failure

    engine, average = process.start(case, seed=1)
    process.walk(engine, average, range(3))
    process.save(f"before poison {case}", process.state(engine, average))
    for victim, factor in ((0, math.inf), (1, math.nan)):
        for number, loss in enumerate(micro_losses(engine, 8, process.rank, process.world)):
            engine.backward(loss * (factor if number == 1 and process.rank == victim else 1))
        update = engine.update(1.0)
        assert update.is_skipped
        assert update.gradient_norm == math.inf
    process.save(f"after poison {case}", process.state(engine, average))
    process.walk(engine, average, range(3, HALF))
    process.save(f"past poison {case}", process.state(engine, average))
    message = ""
    for count in range(OPTIMIZER["max_skipped"]):
        for loss in micro_losses(engine, 8, process.rank, process.world):
            engine.backward(loss * (math.nan if process.rank == 1 else 1))
        try:
            engine.update(1.0)
        except Failure as error:
            message = f"{count}: {error}"
    (process.folder / f"failure {case} {process.rank}.txt").write_text(message)


def alone(process):
    """Steps of what two ranks began, on one."""
    from kineograph.errors import UserError

    process.save("alone", process.go_on("2", process.wait_for("half 2"), range(HALF, HALF + 3)))
    process.save("alone offloaded", process.go_on("2 offloaded", process.wait_for("half 2"), range(HALF, END)))
    refused = {
        "unknown key": lambda: process.start("misspelt", seed=1),
        "other shape": lambda: process.start("0", seed=1)[0].load(
            {**Net(1).state_dict(), "centre": torch.zeros(4)}, {}
        ),
        "other names": lambda: process.start("0", seed=1)[0].load({}, {}),
    }
    for name, attempt in refused.items():
        try:
            attempt()
        except UserError as error:
            (process.folder / f"refused {name}.txt").write_text(str(error))


def main(rank, world, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous-{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=100))
    from pipelines.train import parts

    parts.NUMBERS_AT_ONCE = 16  # so that more than one lot is gathered
    process = Process(rank, world, folder)
    pair(process) if world > 1 else alone(process)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
