"""What the mutants of the CPU's and of the CUDA kernels share: how they are made, run and listed."""

import argparse
import collections
import random
import re
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

SURVIVED = "SURVIVED"


def mutants_of(name, source, rules, most, spread=False):
    """Yield (title, mutated source) of at most ``most`` places of each rule, the first or any.

    A rule is its name, a pattern and what takes its place.
    """
    titles = collections.Counter()
    for rule, pattern, replacement in rules:
        matches = list(re.finditer(pattern, source))
        if spread and len(matches) > most:
            chosen = random.Random(f"{name} {pattern}").sample(range(len(matches)), most)
            matches = [matches[i] for i in sorted(chosen)]
        for match in matches[:most]:
            begin = source.rfind("\n", 0, match.start()) + 1
            if re.match(r"\s*(//|while)", source[begin:]):  # a loop that never ends shows nothing
                continue
            mutated = source[: match.start()] + match.expand(replacement) + source[match.end() :]
            text = source[begin:].split("\n")[0].strip()
            title = f"{name}:{source.count(chr(10), 0, match.start()) + 1} {rule}: {text}"
            titles[title] += 1
            yield title + (f" ({titles[title]})" if titles[title] > 1 else ""), mutated


def known_in(listing):
    """Return what a listing says of each mutant, by its title."""
    text = listing.read_text() if listing.exists() else ""
    return dict(re.findall(r"^(\S.*)\n    (.*)$", text, re.MULTILINE))


def record(listing, titles, found):
    """Write the listing: what was found, and what the listing has on other mutants that still exist."""
    found = known_in(listing) | found
    found = {title: found[title] for title in titles if title in found}
    noticed = sum(what != SURVIVED for what in found.values())
    head = f"{len(found)} of {len(titles)} mutants run, {noticed} noticed; each with the first test that failed."
    lines = [f"{title}\n    {what}" for title, what in found.items()]
    listing.write_text("\n".join([head, "", *lines]) + "\n")


def run_all(description, mutants, run, listing):
    """Run the mutants (file, title, source) that the command line names; exit with an error if one survives.

    ``run(file, source, directory)`` returns what noticed a mutant, or None. Each is recorded as it ends.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--only", default="", help="run those that match this pattern; the listing keeps the others"
    )
    parser.add_argument(
        "--rest", action="store_true", help="run those that the listing lacks, and those that survived"
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (1)")
    given = parser.parse_args()
    noticed = {title for title, what in known_in(listing).items() if what != SURVIVED} if given.rest else set()
    chosen = [mutant for mutant in mutants if re.search(given.only, mutant[1]) and mutant[1] not in noticed]
    found = {}
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(given.jobs) as pool:
        # Each thread has a directory for itself.
        own = threading.local()

        def run_one(name, title, mutated):
            if not hasattr(own, "directory"):
                own.directory = Path(tempfile.mkdtemp(dir=directory))
            return title, run(name, mutated, own.directory) or SURVIVED

        waiting = [pool.submit(run_one, *mutant) for mutant in chosen]
        try:
            for done in as_completed(waiting):
                title, what = done.result()
                found[title] = what
                record(listing, [title for _, title, _ in mutants], found)
                print(f"{title}\n    {what}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    sys.exit(SURVIVED in found.values())
