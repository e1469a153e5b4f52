"""A/B tests and Thompson-sampling bandits for recommender variants."""
