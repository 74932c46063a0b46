"""The four layouts, each written here byte for byte as its publisher does, and the table made from them."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dien_fast.data import (
    ClickDataset,
    NegativeSampler,
    click_table,
    fetch_ml_100k,
    fit_encoders,
    movielens,
    movielens_schema,
    read_movielens,
)
from dien_fast.errors import DataError

RATINGS = {"userId": [1, 1, 2], "movieId": [10, 20, 10], "rating": [5.0, 3.0, 4.0], "timestamp": [881250949, 7, 9]}


def write(directory: Path, files: dict[str, str], encoding: str = "utf-8") -> Path:
    for name, content in files.items():
        (directory / name).write_bytes(content.encode(encoding))
    return directory


def flags(*genres: int) -> str:
    return "|".join("1" if genre in genres else "0" for genre in range(19))


ML_100K = {
    "u.data": "1\t10\t5\t881250949\n1\t20\t3\t7\n2\t10\t4\t9\n",
    "u.item": (
        f"10|Misérables, Les (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Mis%E9rables|{flags(8, 17)}\n"
        f'20|"Quoted" (1994)|01-Jan-1994|||{flags(0)}\n'
        f"30|unknown||||{flags()}\n"
    ),
    "u.user": "1|24|M|technician|85711\n2|53|F|other|T8H1N\n",
}


def test_ml_100k(tmp_path: Path) -> None:
    ratings, movies, users = read_movielens(write(tmp_path, ML_100K, "latin-1"))
    assert ratings.to_pydict() == RATINGS
    assert movies.to_pydict() == {
        "movieId": [10, 20, 30],
        "title": ["Misérables, Les (1995)", '"Quoted" (1994)', "unknown"],
        "genres": ["Drama|War", "unknown", None],
    }
    assert users is not None
    assert users.to_pydict() == {
        "userId": [1, 2],
        "age": [24.0, 53.0],
        "gender": ["M", "F"],
        "occupation": ["technician", "other"],
        "zipCode": ["85711", "T8H1N"],
    }


ML_1M = {
    "ratings.dat": "1::10::5::881250949\n1::20::3::7\n2::10::4::9\n",
    "movies.dat": "10::Misérables, Les (1995)::Drama|War\n20::Star Wars: Episode IV (1977)::Sci-Fi\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::01234-12\n",
}


def test_ml_1m(tmp_path: Path) -> None:
    ratings, movies, users = read_movielens(write(tmp_path, ML_1M, "latin-1"))
    assert ratings.to_pydict() == RATINGS
    assert movies["title"].to_pylist() == ["Misérables, Les (1995)", "Star Wars: Episode IV (1977)"]
    assert movies["genres"].to_pylist() == ["Drama|War", "Sci-Fi"]
    assert users is not None
    assert users["occupation"].to_pylist() == ["K-12 student", "self-employed"]
    assert users["age"].to_pylist() == [1, 56]
    assert users["gender"].to_pylist() == ["F", "M"]
    assert users["zipCode"].to_pylist() == ["48067", "01234-12"]


def test_ml_10m_has_no_users(tmp_path: Path) -> None:
    files = {
        "ratings.dat": "1::122::4.5::838985046\n",
        "movies.dat": "122::Boomerang (1992)::Comedy\n9::No Genre (1)::(no genres listed)\n",
    }
    ratings, movies, users = read_movielens(write(tmp_path, files))
    assert ratings["rating"].to_pylist() == [4.5]
    assert movies["genres"].to_pylist() == ["Comedy", None]
    assert users is None


LATEST = {
    "ratings.csv": "userId,movieId,rating,timestamp\r\n1,10,5.0,881250949\r\n1,20,3.0,7\r\n2,10,4.0,9\r\n",
    "movies.csv": (
        'movieId,title,genres\r\n10,"American President, The (1995)",Drama|War\r\n'
        '20,"Say ""Hi"" (1999)",(no genres listed)\r\n'
    ),
}


def test_ml_latest(tmp_path: Path) -> None:
    ratings, movies, users = read_movielens(write(tmp_path, LATEST))
    assert ratings.to_pydict() == RATINGS
    assert movies["title"].to_pylist() == ["American President, The (1995)", 'Say "Hi" (1999)']
    assert movies["genres"].to_pylist() == ["Drama|War", None]
    assert users is None


ATOMIC = {
    "ml-100k.inter": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t10\t5\t881250949\n1\t20\t3\t7.0\n2\t10\t4\t9\n"
    ),
    "ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tMisérables, Les\t1995\tDrama War\n20\tunknown\t\t\n"
    ),
    "ml-100k.user": (
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "1\t24\tM\ttechnician\t85711\n2\t53\tF\tother\t01234\n"
    ),
}


def test_recbole_atomic_files(tmp_path: Path) -> None:
    ratings, movies, users = read_movielens(write(tmp_path, ATOMIC))
    assert ratings.to_pydict() == RATINGS
    assert movies.to_pydict() == {
        "movieId": [10, 20],
        "title": ["Misérables, Les (1995)", "unknown"],
        "genres": ["Drama|War", None],
    }
    assert users is not None
    assert users.column_names == ["userId", "age", "gender", "occupation", "zipCode"]
    assert users["zipCode"].to_pylist() == ["85711", "01234"]


def test_recbole_atomic_files_without_users_or_years(tmp_path: Path) -> None:
    files = {
        "ml.inter": "timestamp:float\titem_id:token\tuser_id:token\trating:float\textra:float\n7\t20\t1\t3\t0.5\n",
        "ml.item": "item_id:token\tmovie_title:token_seq\tgenre:token_seq\n20\tHeat\tAction\n",
    }
    ratings, movies, users = read_movielens(write(tmp_path, files))
    assert ratings.to_pylist() == [{"userId": 1, "movieId": 20, "rating": 3.0, "timestamp": 7}]
    assert movies.to_pylist() == [{"movieId": 20, "title": "Heat", "genres": "Action"}]
    assert users is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"expected MovieLens files: u.data, ratings.dat, ratings.csv or one \*.inter file"),
        ({"u.data": ML_100K["u.data"]}, r"u.item: no such file"),
        ({"ml.inter": ATOMIC["ml-100k.inter"]}, r"ml.item: no such file"),
        (
            {**LATEST, "ratings.csv": "userId,movieId,rating,timestamp\n1,x,5,7\n"},
            r"ratings.csv: not a MovieLens file",
        ),
        (
            {**LATEST, "ratings.csv": "userId,movieId,rating,timestamp\n1,2,5\n"},
            r"ratings.csv: not a MovieLens file",
        ),
        ({**LATEST, "ratings.csv": ""}, r"ratings.csv: not a MovieLens file"),
        (
            {"ml.inter": "user_id:token\titem_id:token\n1\t2\n"},
            r"ml.inter: no field for 'rating'; the header has user_id",
        ),
    ],
)
def test_broken_directories_are_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_movielens(write(tmp_path, files))
    assert "\n" not in str(caught.value)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: no such directory"):
        read_movielens(tmp_path / "none")


def random_ratings(rows: int = 300, seed: int = 0) -> pa.Table:
    """Few users and few moments, so that many ratings share a moment; in no order."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "userId": rng.integers(1, 6, rows),
            "movieId": rng.integers(1, 40, rows),
            "rating": rng.integers(1, 6, rows).astype(float),
            "timestamp": rng.integers(100, 130, rows),
        }
    )


MOVIES = pa.table(
    {"movieId": range(1, 40), "title": [f"m{i}" for i in range(1, 40)], "genres": ["A|B", None, "C"] * 13}
)


@pytest.mark.parametrize("max_length", [3, 50, None])
def test_histories_equal_brute_force(max_length: int | None) -> None:
    ratings = random_ratings()
    table = click_table(ratings, MOVIES, max_length=max_length)
    ordered = sorted(ratings.to_pylist(), key=lambda row: (row["userId"], row["timestamp"]))
    assert table.num_rows == len(ordered)
    for row, rating in zip(table.to_pylist(), ordered, strict=True):
        liked = [
            other["movieId"]
            for other in ordered
            if other["userId"] == rating["userId"]
            and other["rating"] >= 4
            and other["timestamp"] < rating["timestamp"]
        ]
        assert row["histHighRatedMovieIds"] == (liked if max_length is None else liked[-max_length:])
        times = [
            other["timestamp"]
            for other in ordered
            if other["userId"] == rating["userId"]
            and other["rating"] >= 4
            and other["timestamp"] < rating["timestamp"]
        ]
        assert row["histTimestamps"] == (times if max_length is None else times[-max_length:])
        assert row["label"] == int(rating["rating"] >= 4)
        assert [row[name] for name in ("userId", "movieId", "timestamp")] == [
            rating[name] for name in ("userId", "movieId", "timestamp")
        ]
        assert row["genres"] == ["A|B", None, "C"][(rating["movieId"] - 1) % 3]


def test_users_columns_and_unknown_users() -> None:
    users = pa.table({"userId": [2, 1], "age": [20.0, 30.0], "gender": ["F", "M"], "occupation": ["a", "b"]})
    users = users.append_column("zipCode", pa.array(["1", "2"]))
    ratings = pa.table({"userId": [1, 2, 3], "movieId": [1, 2, 99], "rating": [4.0] * 3, "timestamp": [1, 2, 3]})
    table = click_table(ratings, MOVIES, users)
    assert table.column_names == [
        "userId",
        "timestamp",
        "label",
        "age",
        "gender",
        "occupation",
        "zipCode",
        "genres",
        "movieId",
        "histHighRatedMovieIds",
        "histTimestamps",
    ]
    assert table["age"].to_pylist() == [30, 20, None]
    assert table["genres"].to_pylist() == ["A|B", None, None]


def test_incomplete_ratings_are_refused() -> None:
    ratings = pa.table({"userId": [1, None], "movieId": [1, 2], "rating": [4.0, 4.0], "timestamp": [1, 2]})
    with pytest.raises(DataError, match="ratings: column 'userId' has empty values"):
        click_table(ratings, MOVIES)
    with pytest.raises(DataError, match="ratings: no column 'timestamp'"):
        click_table(ratings.slice(0, 1).drop_columns(["timestamp"]), MOVIES)


def test_no_ratings_give_an_empty_table() -> None:
    assert click_table(random_ratings().slice(0, 0), MOVIES).num_rows == 0


@pytest.mark.parametrize("files", [ML_100K, LATEST])
def test_the_schema_fits_each_layout(files: dict[str, str], tmp_path: Path) -> None:
    table = click_table(*read_movielens(write(tmp_path, files, "latin-1")))
    schema = movielens_schema(table)
    assert (schema.numeric == ["age"]) == ("u.user" in files)
    assert schema.min_count == 5
    assert set(schema.categorical) <= set(table.column_names)
    encoders = fit_encoders(table, schema)
    dataset = ClickDataset(table, schema, encoders)
    assert len(dataset) == 3
    assert schema.shared_embeddings() == {"histHighRatedMovieIds": "movieId", "negHistMovieIds": "movieId"}
    assert encoders.max_length("negHistMovieIds") == 50
    with pytest.raises(DataError, match="group 'movies' has 1 item"):
        NegativeSampler.fit(table, schema, encoders)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the wheel, whose content the module takes for the true one."""
    path = tmp_path / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in ATOMIC.items():
            archive.writestr(f"recbole/dataset_example/ml-100k/{name}", content)
    digests = {name: hashlib.sha256(content.encode()).hexdigest() for name, content in ATOMIC.items()}
    monkeypatch.setattr(movielens, "_FILES_SHA256", digests)
    monkeypatch.setattr(movielens, "_WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def pip_that_copies(wheel: Path, calls: list[list[str]]) -> object:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_fetch_extracts_once(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", pip_that_copies(wheel, calls))
    target = tmp_path / "cache" / "ml-100k"
    assert fetch_ml_100k(target) == target
    assert sorted(path.name for path in target.iterdir()) == sorted(ATOMIC)
    assert read_movielens(target)[0].to_pydict() == RATINGS
    fetch_ml_100k(target)
    assert len(calls) == 1
    assert "recbole==1.2.1" in calls[0]
    assert "--no-deps" in calls[0]
    # A damaged file is fetched anew.
    (target / "ml-100k.user").write_text("half")
    fetch_ml_100k(target)
    assert len(calls) == 2
    assert (target / "ml-100k.user").read_text() == ATOMIC["ml-100k.user"]


def test_another_wheel_is_refused(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that_copies(wheel, []))
    monkeypatch.setattr(movielens, "_WHEEL_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"recbole-1.2.1-py3-none-any.whl: sha256 is \w+, expected 0000"):
        fetch_ml_100k(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("stderr", ["WARNING: retrying\nERROR: No matching distribution found\n", ""])
def test_offline_is_said_in_one_sentence(stderr: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match="cannot fetch MovieLens-100K") as caught:
        fetch_ml_100k(tmp_path / "cache")
    assert ("No matching distribution" in str(caught.value)) == bool(stderr)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()
