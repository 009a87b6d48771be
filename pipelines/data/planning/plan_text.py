"""A plan in tables, for a person."""

from __future__ import annotations

from typing import Any

from kineograph.progress import duration

Row = dict[str, Any]


def plan_text(facts: Row) -> str:
    """Buckets, what is lost, where the seconds went, and what other buckets would change."""
    lines = _buckets(facts)
    if facts["memory"]:
        lines += ["", _assumptions(facts["memory"])]
    if facts["lost"]:
        head = ("lost", "sources", "clips", "time", "of all", "by this alone")
        lines += ["", *table(head, [_loss(entry) for entry in facts["lost"]])]
    seconds = facts["seconds"]
    lines += [
        "",
        f"of {seconds['input']:.1f} s: {seconds['kept']:.1f} s kept, {seconds['unused']:.1f} s beyond "
        f"their buckets' length, {seconds['rejected']:.1f} s rejected",
    ]
    if facts["what_if"]:
        lines += ["", *_what_if(facts)]
    return "\n".join(lines)


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """Left-aligned names, right-aligned numbers."""
    cells = [head, *[tuple(str(cell) for cell in row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]


def _buckets(part: Row) -> list[str]:
    head: tuple[str, ...] = ("bucket", "clips", "share", "time", "tokens/clip", "tokens", "share", "cropped", "cut off")
    rows = [_bucket(row) for row in part["buckets"]]
    total = part["totals"]
    lost = (_percent(total["cropped"]), _percent(total["cut"]))
    rows.append(("all", total["clips"], "", _time(total["seconds"]), "", _count(total["tokens"]), "", *lost))
    if any("batch" in row for row in part["buckets"]):
        batches = [row["batch"] or "none fits" for row in part["buckets"]] + [""]
        head = (*head, "batch")
        rows = [(*row, batch) for row, batch in zip(rows, batches, strict=True)]
    lines = table(head, rows)
    if part["empty"]:
        lines.append(f"no clip goes to {', '.join(part['empty'])}")
    return lines


def _bucket(row: Row) -> tuple[Any, ...]:
    clips = (row["clips"], _percent(row["share"]), _time(row["seconds"]))
    tokens = (row["tokens_per_clip"], _count(row["tokens"]), _percent(row["token_share"]))
    return (row["bucket"], *clips, *tokens, _percent(row["cropped"]), _percent(row["cut"]))


def _what_if(facts: Row) -> list[str]:
    now, then, other = facts["totals"], facts["what_if"]["totals"], facts["what_if"]
    shown = (
        ("buckets", "buckets", str),
        ("clips", "clips", str),
        ("seconds", "time", _time),
        ("tokens", "tokens", _count),
        ("cropped", "cropped", _percent),
        ("cut", "cut off", _percent),
        ("no_bucket_clips", "clips without a bucket", str),
        ("no_bucket_seconds", "their time", _time),
    )
    rows = [(name, show(now[key]), show(then[key]), _signed(then[key] - now[key], show)) for key, name, show in shown]
    return [
        *table(("what if", "now", "then", "change"), rows),
        f"{other['gained']} clips come in, {other['dropped']} fall out, {other['moved']} change their bucket",
        "",
        *_buckets(other),
    ]


def _loss(entry: Row) -> tuple[Any, ...]:
    cost = (entry["sources"], entry["clips"], _time(entry["seconds"]), _percent(entry["share"]))
    alone = f"{entry['alone']} clips, {_time(entry['alone_seconds'])}" if entry["alone"] else ""
    return (entry["reason"], *cost, alone)


def _assumptions(memory: Row) -> str:
    trainer = memory["trainer"]
    checkpointing = "with" if trainer["checkpointing"] else "without"
    return (
        f"batch is an estimate: an STDiT {trainer['width']} wide and {trainer['depth']} deep, "
        f"{_count(memory['parameters'])} parameters, {memory['state_bytes'] / 2**30:.1f} GiB of state on each GPU of "
        f"{memory['bytes'] / 2**30:.0f} GiB, activations of {trainer['activation_bytes']} bytes, "
        f"{checkpointing} checkpointing"
    )


def _signed(change: float, show: Any) -> str:
    return f"{'-' if change < 0 else '+'}{show(abs(change))}" if change else "0"


def _time(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 60 else duration(seconds)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"
