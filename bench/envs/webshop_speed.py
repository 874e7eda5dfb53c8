"""Start-up time, speed and memory of WebShop in one process.

    python bench/envs/webshop_speed.py --data ../shared/data/webshop                 # the 1,000-product set
    python bench/envs/webshop_speed.py --generate 1000000 --cache FOLDER             # a catalogue of full size

Reports the start with an empty cache (reading the files, building store, index and goals) and with a full one, the
resident memory after each, the latency of searches, and steps a second with 128 episodes in flight that play random
commands the pages offer and search with words of their goals. Times are wall time, beside the process's CPU time.
Every start is a process of its own.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def resident_mb() -> float:
    """Memory of this process now, in MiB; pages of mapped files that were read count too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def anonymous_mb() -> float:
    """The same without mapped files, which the system can drop at any time."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def search_times(env, num_queries: int) -> list[float]:
    """Milliseconds of searches for words of random goals, none of them cached."""
    rng, goals = random.Random(1), env.catalogue.goals
    times = []
    for _ in range(num_queries):
        words = goals[rng.randrange(len(goals))].instruction_text.split()
        query = " ".join(rng.sample(words, min(6, len(words))))
        started = time.perf_counter()
        env.catalogue.results(query)
        times.append(1000 * (time.perf_counter() - started))
    return times


def play(env, num_slots: int, num_steps: int) -> dict[str, float]:
    """Steps and episodes a second over `num_slots` episodes in flight."""
    rng = random.Random(0)
    tasks = env.tasks("train")
    slots = [env.spawn() for _ in range(num_slots)]

    def start(slot):
        task = tasks[rng.randrange(len(tasks))]
        return slot.reset(task)

    seen = [start(slot) for slot in slots]
    steps = episodes = 0
    wall, cpu = time.perf_counter(), time.process_time()
    while steps < num_steps:
        for i, slot in enumerate(slots):
            offered = [c for c in seen[i].admissible if c.startswith("click[")]
            if not offered or rng.random() < 0.1:
                words = slot.goal.instruction_text.split()
                command = f"search[{' '.join(rng.sample(words, min(5, len(words))))}]"
            else:
                command = rng.choice(offered)
            step = slot.step(command)
            steps += 1
            episodes += step.done
            seen[i] = start(slot) if step.done else step.observation
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"steps": steps, "episodes": episodes, "steps_per_s": steps / wall, "steps_per_cpu_s": steps / cpu}


def one_start(options) -> dict:
    """Opens the catalogue in this process and measures it."""
    wall, cpu = time.perf_counter(), time.process_time()
    from paw_fast import envs

    imported = time.perf_counter() - wall
    settings = {"cache_dir": options.cache, "max_steps": 15}
    if options.generate:
        settings["num_products"] = options.generate
    else:
        settings["data"] = options.data
    env = envs.make("webshop", **settings)
    tasks = env.tasks("train")
    env.reset(tasks[0])
    result = {
        "import_s": imported, "start_s": time.perf_counter() - wall, "start_cpu_s": time.process_time() - cpu,
        "products": len(env.catalogue.store), "goals": len(env.catalogue.goals), "resident_mb": resident_mb(),
        "anonymous_mb": anonymous_mb(),
    }  # fmt: skip
    if options.measure:
        times = sorted(search_times(env, options.queries))
        result |= {"search_ms_median": statistics.median(times), "search_ms_p95": times[int(0.95 * len(times))]}
        env.catalogue.judge(
            env.catalogue.goals[0], env.catalogue.goals[0].asin, {}
        )  # loads the language model where one is needed
        result |= play(env, 128, options.steps) | {
            "resident_after_mb": resident_mb(), "anonymous_after_mb": anonymous_mb(),
        }  # fmt: skip
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the official files")
    parser.add_argument("--generate", type=int, default=0, help="a generated catalogue of so many products instead")
    parser.add_argument("--cache", type=Path, help="where store and index go; default: a folder that is removed again")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(one_start(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        for name, more in (("cold", []), ("cached", ["--measure"])):
            command = [sys.executable, __file__, *sys.argv[1:], "--cache", str(cache), "--child", *more]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(name, json.dumps({k: round(v, 3) for k, v in json.loads(done.stdout).items()}), flush=True)
        size = sum(path.stat().st_size for path in (cache / "webshop").rglob("*") if path.is_file())
        print("cache", json.dumps({"size_mb": round(size / 2**20, 1)}))


if __name__ == "__main__":
    main()
