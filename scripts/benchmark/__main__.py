"""``python -m benchmark``, which ``scripts/bench`` runs."""

from benchmark.cli import main

if __name__ == "__main__":
    main()
