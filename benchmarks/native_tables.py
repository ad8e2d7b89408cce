"""The tables in Markdown that `native.py` prints of what its cases found; from a file of its lines too.

python benchmarks/native_tables.py FIGURES
"""

import json
import sys
from pathlib import Path


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def said(values: list[float] | None) -> str:
    """A median and its range."""
    return "" if values is None else f"{values[0]:.3g} ({values[1]:.3g} to {values[2]:.3g})"


def reached(value: float | None, least: float | None) -> str:
    return "" if least is None or value is None else f"{least:g}{'' if value >= least else ', missed'}"


def speeds(found: list[dict]) -> str:
    """A line for each case and side: its own figures, and how many times as fast ours are."""
    rows = []
    for case in found:
        for name, side in case["sides"].items():
            ratio = {own: others[name] for own, others in case["ratios"].items() if name in others}
            usual, huge = side.get("share_of_usual_pages"), side.get("share_of_huge_pages")
            share = "" if usual is None else f"{said(usual)}{'' if huge is None else f' [{huge[0]:.3g}]'}"
            cells = [case["case"], name, f"{side['tokens_per_s'][0]:g}", f"{side['step_ms'][0]:g}", share, reached(usual and usual[0], side.get("share_to_reach"))]
            for own in ("ours", "ours-avx2"):
                one = ratio.get(own, {})
                cells += [said(one.get("whole")), said(one.get("steps")), reached(one.get("whole", [None])[0], one.get("to_reach"))]
            rows.append([*cells, f"{case['others']:.2f}"])
    ours = [f"{own}{what}" for own in ("ours over it", "AVX2 over it") for what in ("", ", steps", ", to reach")]
    return table(["case", "side", "tokens/s", "ms a step", "share of the bandwidth [huge pages]", "to reach", *ours, "other programs"], rows)


def copies(found: list[dict]) -> str:
    rows = []
    for case in found:
        speed, ratio = case["tokens_per_s"], case["ratio"]
        cells = [f"{speed['greedy'][0]:g}", f"{speed['lookup'][0]:g}", said(ratio["whole"]), said(ratio["steps"]), reached(ratio["whole"][0], ratio["to_reach"])]
        rows.append([case["case"], *cells, "yes" if case["same_tokens"] else "no", f"{case['others']:.2f}"])
    return table(["case", "greedy, tokens/s", "prompt lookup", "ratio", "steps", "to reach", "same tokens", "other programs"], rows)


def prompts(found: list[dict]) -> str:
    rows = []
    for case in found:
        for name, one in case["prompts"].items():
            over = one.get("ours_over_it")
            cells = [f"{case['tokens']}", f"{one['ms'][0]:.0f}", f"{one['tokens_per_s'][0]:.0f}", said(over), reached(over[0], one["to_reach"]) if over and one["to_reach"] else ""]
            rows.append([case["case"], name, *cells, f"{case['others']:.2f}"])
    return table(["case", "side", "tokens", "ms until the first new one", "tokens/s", "ours over it", "to reach", "other programs"], rows)


def contexts(found: list[dict]) -> str:
    rows = []
    for case in found:
        for length, one in case["lengths"].items():
            own = [f"{one[name]:g}" for name in ("step_ms", "beyond_ms", "at_bandwidth_ms", "at_own_speed_ms")]
            rows.append([case["case"], f"{int(length):,}", f"{one['cache_bytes'] / 1e6:.1f}", *own, f"{one['kv8_step_ms']:g}" if "kv8_step_ms" in one else "-", f"{case['others']:.2f}"])
    head = ["cache, MB", "ms a step", "ms beyond the shortest", "its bytes at the bandwidth", "at the speed of the shortest one's step", "ms a step over a cache in 8 bits", "other programs"]
    return table(["case", "context", *head], rows)


def arounds(found: list[dict]) -> str:
    rows = []
    for case in found:
        for way, one in case["ways"].items():
            times = [f"{one[name][0]:.0f}" for name in ("step_us", "outside_us", "checks_us")]
            rows.append([case["case"], way, *times, said(one["share"]), f"under 0.1{'' if one['reached'] else ', missed'}", f"{case['others']:.2f}"])
    return table(["case", "settings", "step (us)", "outside the pass (us)", "checks and plan in it (us)", "share outside", "to reach", "other programs"], rows)


def tables(found: list[dict]) -> str:
    kinds = {"sides": speeds, "ratio": copies, "prompts": prompts, "lengths": contexts, "ways": arounds}
    parts = [(make, [case for case in found if key in case]) for key, make in kinds.items()]
    return "\n\n".join(make(own) for make, own in parts if own)


if __name__ == "__main__":
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines() if line.startswith("{")]
    print(tables([line for line in lines if "case" in line]))
