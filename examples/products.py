"""Products of a shop, from a CSV, to the categories that they belong to.

python examples/products.py             # a generated shop
python examples/products.py FILE.csv    # columns title, brand, categories

Cells of `categories` are names between `|`. What is read of a product are the
words of its title, and its brand as a feature of its own: any dict from feature
to number will do. Predictions are written beside the run, as a CSV again.
"""

import csv
from pathlib import Path
import random
import sys
import tempfile

import numpy as np

import xlj

KINDS = {
  "shoes": "sneaker boot sandal loafer heel",
  "kitchen": "kettle pan knife grater bowl",
  "garden": "rake hose spade pot shears",
  "audio": "speaker headphones radio amplifier turntable",
}
BRANDS = "Arbo Bellin Corvu Dessa Elmo Fenn".split()


def generate(path: Path, num_rows: int = 2000) -> None:
  """Writes products, whose brand says for whom they are made."""
  rng = random.Random(0)
  with path.open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["title", "brand", "categories"])
    for _ in range(num_rows):
      kind, brand = rng.choice([*KINDS]), rng.choice(BRANDS)
      thing = rng.choice(KINDS[kind].split())
      look = rng.choice("red blue small large classic light".split())
      made_for = "professional" if brand < "C" else "home"
      categories = f"{kind}|{kind}: {thing}|{made_for}"
      rows.writerow([f"{look} {thing}", brand, categories])


def features(product: dict[str, str]) -> dict[str, float]:
  """What is read of a product."""
  words = product["title"].lower().split()
  return dict.fromkeys([*words, f"brand={product['brand']}"], 1.0)


def main() -> None:
  """Trains on four fifths of the products, and answers the others."""
  work = Path(tempfile.mkdtemp())
  path = Path(sys.argv[1]) if len(sys.argv) > 1 else work / "products.csv"
  if len(sys.argv) == 1:
    generate(path)
  with path.open(newline="") as file:
    products = [*csv.DictReader(file)]
  random.Random(1).shuffle(products)
  X = [features(product) for product in products]
  Y = [product["categories"].split("|") for product in products]
  count = len(X) // 5
  run = xlj.train("xmc", X[count:], Y[count:], workdir=work / "run")

  scores, ids = run.topk(X[:count], k=3)
  names = run.names(ids)
  answers = work / "answers.csv"
  with answers.open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["title", "brand", "found"])
    for product, found in zip(products, names):
      rows.writerow([product["title"], product["brand"], "|".join(found)])
  print("\n".join(answers.read_text().splitlines()[:4]))
  right = [len({*found} & {*true}) / 3 for found, true in zip(names, Y)]
  print(f"P@3 of {count} new products: {np.mean(right):.3f}; see {answers}")


if __name__ == "__main__":
  main()
