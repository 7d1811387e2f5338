"""What ships inside the package, so that prompt tuning is seen to work with no network: a tiny base's vocabulary."""

from pathlib import Path

FOLDER = Path(__file__).parent
VOCABULARY = FOLDER / "spiece.model"  # 8,000 pieces; with the 100 sentinels 8,100 ids
