"""The synthetic world: raw corpora whose truth is known, and the oracle that grades what is made of them."""
