"""Logs of events in the formats of the field, on a few lines each, as they are published."""

import gzip
import json

import pytest

from dien_fast.data.event_files import NO_CATEGORY, read_events
from dien_fast.data.events import next_clicks
from dien_fast.errors import DataError

REVIEWS_2014 = [
    {"reviewerID": "A1", "asin": "B01", "reviewText": "fine", "overall": 5.0, "unixReviewTime": 1400000000},
    {"reviewerID": "A2", "asin": "B02", "reviewText": "so so", "overall": 3.0, "unixReviewTime": 1400000500},
    {"reviewerID": "A1", "asin": "B03", "reviewText": "good", "overall": 4.0, "unixReviewTime": 1300000000},
]
META_2014 = [
    {"asin": "B01", "title": "It's a book", "categories": [["Books", "Thrillers"], ["Gifts"]]},
    {"asin": "B02", "categories": [["Books"]]},
    {"asin": "B99", "categories": [["Toys"]]},
]
REVIEWS_2023 = [
    {"rating": 5.0, "title": "!", "asin": "V1", "parent_asin": "B01", "user_id": "A1", "timestamp": 1588687728923},
    {"rating": 1.0, "title": "?", "asin": "V2", "parent_asin": "B02", "user_id": "A1", "timestamp": 1588687728900},
]
META_2023 = [
    {"main_category": "Beauty", "parent_asin": "B01", "categories": ["Beauty", "Hair", "Wigs"]},
    {"main_category": "Beauty", "parent_asin": "B02", "categories": []},
]


def write(path, lines, dump=json.dumps):
    text = "".join(f"{dump(line)}\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def columns(events):
    return {name: events.table[name].to_pylist() for name in (events.user, events.item, *events.item_columns)}


@pytest.mark.parametrize("dump", [json.dumps, repr], ids=["json", "python"])
def test_amazon_of_2014(tmp_path, dump):
    path = write(tmp_path / "reviews_Books_5.json.gz", REVIEWS_2014)
    write(tmp_path / "meta_Books.json.gz", META_2014, dump)
    for source in (path, tmp_path):
        events = read_events(source)
        assert columns(events) == {
            "user": ["A1", "A2", "A1"],
            "item": ["B01", "B02", "B03"],
            "category": ["Thrillers", "Books", NO_CATEGORY],
        }
        clicks = next_clicks(events).table.to_pylist()
        assert clicks[1]["hist_item"] == ["B03"]
        assert (clicks[1]["item"], clicks[1]["category"], clicks[0]["item"]) == ("B01", "Thrillers", "B02")


def test_amazon_of_2018(tmp_path):
    path = write(tmp_path / "reviews_Toys.json", REVIEWS_2014)
    meta = [{"asin": "B01", "category": ["Toys", "Kites"], "price": "<b>$3</b>"}, {"asin": "B02", "category": []}]
    write(tmp_path / "meta_Toys.json", meta)
    assert columns(read_events(path))["category"] == ["Kites", NO_CATEGORY, NO_CATEGORY]


def test_amazon_of_2023(tmp_path):
    path = write(tmp_path / "reviews_Beauty.jsonl.gz", REVIEWS_2023)
    write(tmp_path / "meta_Beauty.jsonl.gz", META_2023)
    events = read_events(path)
    assert columns(events) == {"user": ["A1", "A1"], "item": ["B01", "B02"], "category": ["Wigs", NO_CATEGORY]}
    # Milliseconds since 1970, in UTC.
    assert events.table["time"].cast("int64").to_pylist() == [1588687728923, 1588687728900]


def test_amazon_without_descriptions(tmp_path):
    events = read_events(write(tmp_path / "reviews_Books.json", REVIEWS_2014))
    assert list(events.item_columns) == []
    assert next_clicks(events).schema.sequences == ["hist_item"]


def test_recbole(tmp_path):
    path = tmp_path / "shop.inter"
    path.write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\t07\t5\t2\nu1\t08\t4\t1\nu2\t09\t3\t1\n"
    )
    (tmp_path / "shop.item").write_text(
        "item_id:token\tbrand:token\ttags:token_seq\tprice:float\n07\tacme\ta b\t1.5\n08\tother\tb\t2\n"
    )
    events = read_events(tmp_path)
    assert columns(events) == {
        "user_id": ["u1", "u1", "u2"],
        "item_id": ["07", "08", "09"],
        "brand": ["acme", "other", NO_CATEGORY],
    }
    assert next_clicks(events).table["hist_item_id"].to_pylist() == [["08"], ["08"]]


def test_lines_of_user_and_item(tmp_path):
    path = tmp_path / "beauty.txt"
    path.write_text("1 11\n1 12\n2 11\n2 13\n1 14\n")
    clicks = next_clicks(read_events(path), first=2).table.to_pylist()
    assert [(row["user"], row["item"], row["hist_item"]) for row in clicks if row["label"]] == [
        ("1", "12", ["11"]),
        ("1", "14", ["11", "12"]),
        ("2", "13", ["11"]),
    ]


def test_movielens(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.0,7\n1,20,3.0,5\n")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n10,"Heat, The",Action|Crime\n20,X,(no genres listed)\n'
    )
    events = read_events(tmp_path)
    assert columns(events) == {"userId": [1, 1], "movieId": [10, 20], "genres": ["Action|Crime", NO_CATEGORY]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "reviews_x.json",
            '{"user": 1}\n',
            "a review must have the fields reviewerID, asin, unixReviewTime or",
        ),
        ("reviews_x.json", "hello\n", "row 0 is no JSON object: 'hello'"),
        ("meta_x.json", "{}\n", "this file describes items; name the file of reviews beside it"),
        ("x.inter", "user_id:token\tmovie\n", "a header of name:type fields was expected, got 'movie'"),
        ("x.inter", "user_id:token\titem:token\n1\t2\n", "no field 'item_id'; the header has user_id, item"),
        ("x.txt", "1 2\n3\n", "expected a user and an item in every line"),
        ("x.doc", "", "expected reviews (.json or .jsonl, also .gz), .inter or .txt"),
    ],
)
def test_files_that_are_not_what_their_names_say(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as refused:
        read_events(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name}: {message}")


@pytest.mark.parametrize("size", [1, 2, 30])
def test_a_compressed_log_that_was_cut_short_is_named(tmp_path, size):
    review = json.dumps({"reviewerID": "A", "asin": "B", "unixReviewTime": 1})
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(review.encode())[:size])
    with pytest.raises(DataError, match=r"x\.json\.gz: cannot be read: "):
        read_events(tmp_path / "x.json.gz")


def test_items_without_ids_are_named(tmp_path):
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\n1\t2\n")
    (tmp_path / "x.item").write_text("id:token\tkind:token\n2\ta\n")
    with pytest.raises(DataError, match=r"x\.item: no field 'item_id'; the header has id, kind"):
        read_events(tmp_path / "x.inter")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"reviewerID": "A', "row 3 is no JSON object"),
        ('{"reviewerID": 5, "asin": [], "unixReviewTime": 1}', "row 3: "),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "reviews_x.json", REVIEWS_2014)
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(DataError, match=message):
        read_events(path)


def test_a_review_without_an_item_is_named(tmp_path):
    path = write(tmp_path / "reviews_x.json", [*REVIEWS_2014, {"reviewerID": "A1", "unixReviewTime": 1}])
    with pytest.raises(DataError, match="column 'item': an event needs a value, row 3 has none"):
        read_events(path)


def test_a_directory_must_hold_one_log(tmp_path):
    with pytest.raises(DataError, match="found none"):
        read_events(tmp_path)
    (tmp_path / "a.txt").write_text("1 2\n")
    (tmp_path / "b.txt").write_text("1 2\n")
    with pytest.raises(DataError, match=r"found a\.txt, b\.txt"):
        read_events(tmp_path)
    with pytest.raises(DataError, match="no such file or directory"):
        read_events(tmp_path / "c")
