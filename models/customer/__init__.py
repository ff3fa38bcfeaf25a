"""One customer: features, the state and its bytes, and what conditions may ask."""
