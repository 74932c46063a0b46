"""What the mutants of the CPU's and of the CUDA kernels share: how they are made, run and listed."""

import argparse
import collections
import random
import re
import sys
import tempfile
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


def record(listing, titles, found):
    """Write the listing: what was found, and what the listing has on other mutants that still exist."""
    known = re.findall(r"^(\S.*)\n    (.*)$", listing.read_text() if listing.exists() else "", re.MULTILINE)
    found = dict(known) | found
    found = {title: found[title] for title in titles if title in found}
    noticed = sum(what != SURVIVED for what in found.values())
    head = f"{len(found)} of {len(titles)} mutants run, {noticed} noticed; each with the first test that failed."
    lines = [f"{title}\n    {what}" for title, what in found.items()]
    listing.write_text("\n".join([head, "", *lines]) + "\n")


def run_all(description, mutants, run, listing):
    """Run the mutants (file, title, source) that the command line names; exit with an error if one survives.

    ``run(file, source, directory)`` returns what noticed a mutant, or None.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--only", default="", help="run those that match this pattern; the listing keeps the others"
    )
    only = parser.parse_args().only
    found = {}
    try:
        with tempfile.TemporaryDirectory() as directory:
            for name, title, mutated in mutants:
                if re.search(only, title):
                    found[title] = run(name, mutated, Path(directory)) or SURVIVED
                    print(f"{title}\n    {found[title]}", flush=True)
    finally:
        record(listing, [title for _, title, _ in mutants], found)
    sys.exit(SURVIVED in found.values())
