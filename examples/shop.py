"""
From a log of impressions to scored candidates
==============================================

This tutorial takes the log of a small shop, turns it into a click table, trains DIEN on it and ranks items for a
user. Everything on this page was computed when the page was built; the script is ``examples/shop.py``.
"""

# %%
# A log of impressions
# --------------------
# A shop knows which items it showed to whom, when, and whether they were clicked. Here the log is made up:
# every user likes one brand in the first week and another in the second. To predict clicks, a model has to
# notice that the interest has moved.
import numpy as np
import pandas as pd

rng = np.random.default_rng(0)
impressions = []
for user in range(150):
    first, second = rng.permutation(6)[:2]
    shown = set()  # nothing is shown twice
    for day in range(14):
        liked = first if day < 7 else second
        item = None
        while item is None or item in shown:
            item = rng.integers(60) if rng.random() < 0.5 else liked + 6 * rng.integers(10)  # brand: item mod 6
        shown.add(item)
        clicked = rng.random() < (0.85 if item % 6 == liked else 0.1)
        price = round(5 + 20 * rng.random(), 2)
        impressions.append((f"u{user}", day, f"i{item}", f"b{item % 6}", price, int(clicked)))
log = pd.DataFrame(impressions, columns=["user", "day", "item", "brand", "price", "clicked"])
print(log.head().to_string(index=False))

# %%
# The click table
# ---------------
# DIEN needs one more thing in every row: what the user had clicked *before* that row, oldest first. A history
# must not hold its own row or anything later, or the model would see the answer.


def add_histories(log):
    """Add the items and brands that the user clicked before each row."""
    ordered = log.sort_values("day", kind="stable")
    past = {user: ([], []) for user in log["user"].unique()}
    histories = []
    for row in ordered.itertuples():
        items, brands = past[row.user]
        histories.append(("|".join(items), "|".join(brands)))
        if row.clicked:
            items.append(row.item)
            brands.append(row.brand)
    return log.join(pd.DataFrame(histories, ordered.index, ["past_items", "past_brands"]))


clicks = add_histories(log)
print(clicks.tail(3).to_string(index=False))

# %%
# The schema
# ----------
# A schema says what the columns mean. The pairs tell which history belongs to which candidate column: the item
# is compared with past items, its brand with past brands.
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
clicks.to_csv(folder / "clicks.csv", index=False)
(folder / "clicks.toml").write_text("""\
label = "clicked"
user = "user"
time = "day"
numeric = ["price"]
categorical = ["item", "brand"]
sequences = ["past_items", "past_brands"]  # oldest first

[[groups]]
name = "items"
pairs = [{ ad = "item", pos_hist = "past_items" }, { ad = "brand", pos_hist = "past_brands" }]
""")

# %%
# Training
# --------
# This is ``dien-fast train`` of the command line. Rows are divided by each user's own order in time: the first
# 80 % train, the next 10 % decide when to stop, and the last 10 % are for the test. The table is small, so the
# batches are small, too, and the step size is large.
from dien_fast.cli import main

arguments = ["--dataset", str(folder / "clicks.csv"), "--schema", str(folder / "clicks.toml")]
arguments += ["--output", str(folder / "run"), "--batch-size", "64", "--lr", "0.01", "--epochs", "8"]
main(["train", *arguments, "--cpu", "--quiet"])

# %%
# The run directory holds the history of the training, a row for each epoch.
import matplotlib.pyplot as plt

history = pd.read_csv(folder / "run" / "history.csv")
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
history.plot(x="epoch", y=["train_loss", "valid_loss"], ax=axes[0], marker="o", ylabel="loss")
history.plot(x="epoch", y=["train_auc", "valid_auc"], ax=axes[1], marker="o", ylabel="AUC")
plt.show()

# %%
# Scoring a table
# ---------------
# ``dien_fast.load`` opens a run. ``predict`` takes a path or any table that speaks Arrow and returns the
# probability of a click for each row. Here are the last days, which took no part in the training.
import dien_fast

run = dien_fast.load(folder / "run")
last = clicks[clicks["day"] >= 12]
probabilities = run.predict(last)

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for value, name in ((1, "clicked"), (0, "not clicked")):
    axis.hist(probabilities[last["clicked"] == value], bins=20, range=(0, 1), alpha=0.6, label=name)
axis.set(xlabel="predicted probability of a click", ylabel="rows")
axis.legend()
plt.show()

# %%
# What the model attends to
# -------------------------
# ``attention_view`` draws two pictures of a user's last row, as ``dien-fast info RUN --attention DIRECTORY`` does.
# The first shows how much each step of the history counts for each candidate, here one item of each brand.
from dien_fast.training.attention_view import attention_view

candidates = ["i0", "i1", "i2", "i3", "i4", "i5"]
attention, interest = attention_view(run, clicks, folder / "pictures", user="u3", candidates=candidates)


def show(picture):
    plt.figure(figsize=(9, 6), layout="constrained")
    plt.imshow(plt.imread(picture))
    plt.axis("off")
    plt.show()


show(attention)

# %%
# The second shows how the user's interest moves from step to step, once for each candidate.
show(interest)

# %%
# Ranking items for a user
# ------------------------
# To fill a page for a user, score the whole catalogue. ``score_candidates`` takes the words as they stand in the
# shop's tables, and computes what depends on the user only once. This is the user of the pictures, who liked one
# brand in the first week and another in the second.
mine = clicks[(clicks["user"] == "u3") & (clicks["clicked"] == 1)]
user = {"past_items": list(mine["item"]), "past_brands": list(mine["brand"])}
print("clicked brands, oldest first:", *user["past_brands"])

catalogue = log[["item", "brand"]].drop_duplicates().assign(price=15.0)
scored = catalogue.assign(probability=run.score_candidates(user, catalogue))
print(scored.nlargest(10, "probability").to_string(index=False))

# %%
# The brand that the user likes now comes first.
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for brand, rows in scored.groupby("brand"):
    axis.scatter([brand] * len(rows), rows["probability"], label=brand, alpha=0.7)
axis.set(xlabel="brand", ylabel="probability of a click")
plt.show()
