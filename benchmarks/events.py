"""Times the conversion of a file of reviews to rows of clicks, in a process of its own.

    python benchmarks/events.py [--events 1000000]

The file has the fields, and about the size of a line, of the Amazon reviews of 2014 (texts of about 400 bytes),
and descriptions of the items beside it; both are compressed with gzip. What is timed is reading both, sorting,
sampling one item for each user's last event and building the table with its histories of at most 50 events.

Then every event from the 5th on is predicted, and the rows are encoded, once with histories that are copies and
once with views of the log: what the table and the data set keep in memory, and the peak on the way.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
from memory import resident

SECONDS, MIB = 30, 1024
# Events by user and by item are as skewed as in the category of books: most have few.
USERS_PER_EVENT, ITEMS_PER_EVENT = 0.12, 0.05


def write_reviews(directory: Path, events: int) -> Path:
    rng = np.random.default_rng(0)
    # Far more than the window in which gzip finds repetitions.
    words = ["".join(map(chr, letters)) for letters in rng.integers(97, 123, (5_000, 6))]
    texts = [" ".join(rng.choice(words, length)) for length in rng.integers(20, 120, 20_000)]
    users = rng.zipf(1.6, 4 * events)
    users = users[users <= events * USERS_PER_EVENT][:events]
    items = rng.permutation(np.minimum(rng.zipf(1.3, events), int(events * ITEMS_PER_EVENT)))
    # A tail of users with one event each stands for those who never came back.
    users = np.where(
        rng.random(len(users)) < 0.5, users, rng.integers(0, int(events * USERS_PER_EVENT), len(users))
    )
    times = rng.integers(1_000_000_000, 1_400_000_000, len(users))
    path = directory / "reviews_Books_5.json.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        for user, item, moment in zip(users.tolist(), items.tolist(), times.tolist(), strict=False):
            review = {
                "reviewerID": f"A{user:012}",
                "asin": f"{item:010}",
                "reviewerName": "A reader",
                "helpful": [0, 1],
                "reviewText": texts[moment % len(texts)],
                "overall": 5.0,
                "summary": "Worth reading",
                "unixReviewTime": moment,
                "reviewTime": "07 2, 2013",
            }
            file.write(json.dumps(review) + "\n")
    with gzip.open(directory / "meta_Books.json.gz", "wt", compresslevel=1) as file:
        for item in range(int(events * ITEMS_PER_EVENT) + 1):
            paths = [["Books", f"Genre {item % 300}"]]
            # Lines of the descriptions of 2014 are Python's literals.
            file.write(f"{ {'asin': f'{item:010}', 'title': 'A title', 'categories': paths} }\n")
    return path


def convert(path: Path) -> dict[str, Any]:
    """Convert in this process, which should be fresh."""
    from dien_fast.data.event_files import read_events
    from dien_fast.data.events import next_clicks

    before, begin = resident("VmRSS"), time.perf_counter()
    events = read_events(path)
    read = time.perf_counter() - begin
    clicks = next_clicks(events, by="popularity")
    return {
        "events": events.table.num_rows,
        "rows": clicks.table.num_rows,
        "reading seconds": round(read, 1),
        "seconds": round(time.perf_counter() - begin, 1),
        "peak MiB": round(resident("VmHWM") / 2**20),
        "MiB before": round(before / 2**20),
    }


def encode(path: Path, views: bool) -> dict[str, Any]:
    """Make and encode the rows of every event from the 5th on, in this process, which should be fresh."""
    from dien_fast.data import ClickDataset, fit_encoders
    from dien_fast.data.event_files import read_events
    from dien_fast.data.events import next_clicks

    events = read_events(path).sorted()
    before, begin = resident("VmRSS"), time.perf_counter()
    clicks = next_clicks(events, first=5, by="popularity", views=views)
    encoders = fit_encoders(clicks.table, clicks.schema)
    dataset = ClickDataset(clicks.table, clicks.schema, encoders, checked=True)
    return {
        "histories": "views" if views else "copies",
        "rows": len(dataset),
        "seconds": round(time.perf_counter() - begin, 1),
        "kept MiB": round((resident("VmRSS") - before) / 2**20),
        "peak MiB": round(resident("VmHWM") / 2**20),
    }


def main() -> None:
    parser = machine.parser_of(__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--file", type=Path, help="convert this file in this process")
    parser.add_argument("--histories", choices=["copies", "views"], help="with --file: encode its rows, too")
    arguments = parser.parse_args()
    if arguments.file:
        work = convert if arguments.histories is None else partial(encode, views=arguments.histories == "views")
        print(json.dumps(work(arguments.file)))
        return
    with tempfile.TemporaryDirectory() as directory:
        path = write_reviews(Path(directory), arguments.events)
        size = sum(file.stat().st_size for file in Path(directory).iterdir()) / 2**20
        command = [sys.executable, __file__, "--file", str(path)]
        variants: list[list[str]] = [[], ["--histories", "copies"], ["--histories", "views"]]
        found = [
            json.loads(subprocess.run(command + more, capture_output=True, text=True, check=True).stdout)
            for more in variants
        ]
    result = found[0] | {"file MiB": round(size), "from the 5th on": found[1:]}
    print(json.dumps(result, indent=2))
    machine.save(
        machine.description(arguments.threads) | result,
        machine.RESULTS / f"events-{machine.here(arguments.threads)}.json",
    )
    if result["seconds"] > SECONDS or result["peak MiB"] > MIB:
        raise SystemExit(f"more than {SECONDS} s or {MIB} MiB")


if __name__ == "__main__":
    main()
