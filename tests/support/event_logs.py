"""One log of events in every known format of files, for campaigns."""

import gzip
import json

TITLES = "unknown|Action|Adventure"


def inter(directory, events):
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += [f"{user}\t{item}\t1.0\t{time}" for user, item, time in events]
    (directory / "log.inter").write_text("\n".join(lines) + "\n")
    kinds = sorted({f"{item}\tc{len(item)}\ta b" for _, item, _ in events})
    (directory / "log.item").write_text("\n".join(["item_id:token\tkind:token\ttags:token_seq", *kinds]) + "\n")
    return directory / "log.inter"


def lines(directory, events):
    (directory / "log.txt").write_text("".join(f"{user} {item}\n" for user, item, _ in events))
    return directory / "log.txt"


def reviews(directory, events):
    found = [
        json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time, "text": "{"})
        for user, item, time in events
    ]
    (directory / "reviews_X.json").write_text("\n".join(found) + "\n")
    items = [{"asin": item, "categories": [["a", "b"], ["c"]]} for item in sorted({item for _, item, _ in events})]
    (directory / "meta_X.json").write_text("".join(f"{item}\n" for item in items))
    return directory / "reviews_X.json"


def newer_reviews(directory, events):
    found = [
        json.dumps({"user_id": user, "parent_asin": item, "timestamp": 1000 * time}) for user, item, time in events
    ]
    (directory / "X.jsonl.gz").write_bytes(gzip.compress("\n".join(found).encode()))
    items = [{"parent_asin": item, "categories": ["a"]} for item in sorted({item for _, item, _ in events})]
    (directory / "meta_X.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, items)).encode()))
    return directory / "X.jsonl.gz"


def _numbers(events):
    """Events whose users and items are numbers, as those of MovieLens are."""
    return [(int(user.strip("u")) + 1, int(item.strip("i")) + 1, time) for user, item, time in events]


def ml_100k(directory, events):
    events = _numbers(events)
    (directory / "u.data").write_text("".join(f"{u}\t{i}\t5\t{t}\n" for u, i, t in events))
    flags = "|".join("01"[number % 2] for number in range(19))
    (directory / "u.item").write_text("".join(f"{i}|T|d||u|{flags}\n" for i in sorted({i for _, i, _ in events})))
    (directory / "u.user").write_text(
        "".join(f"{u}|30|M|other|01234\n" for u in sorted({u for u, _, _ in events}))
    )
    return directory


def ml_1m(directory, events):
    events = _numbers(events)
    (directory / "ratings.dat").write_text("".join(f"{u}::{i}::5::{t}\n" for u, i, t in events))
    (directory / "movies.dat").write_text("".join(f"{i}::T::Drama\n" for i in sorted({i for _, i, _ in events})))
    (directory / "users.dat").write_text(
        "".join(f"{u}::M::25::4::01234\n" for u in sorted({u for u, _, _ in events}))
    )
    return directory


def ml_latest(directory, events):
    events = _numbers(events)
    rows = "".join(f"{u},{i},5.0,{t}\n" for u, i, t in events)
    (directory / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    rows = "".join(f'{i},"T, the",Drama|War\n' for i in sorted({i for _, i, _ in events}))
    (directory / "movies.csv").write_text("movieId,title,genres\n" + rows)
    return directory


def official(directory, events):
    rows = "".join(f"{number % 2}\t{u}\t{i}\tc\ti1\x02i2\tc\x02c\n" for number, (u, i, _) in enumerate(events))
    for name in ("local_train_splitByUser", "local_test_splitByUser"):
        (directory / name).write_text(rows)
    (directory / "mid_voc.txt").write_text("i1\t1\ni2\t2\n")
    return directory


FORMATS = {
    found.__name__: found for found in (inter, lines, reviews, newer_reviews, ml_100k, ml_1m, ml_latest, official)
}
